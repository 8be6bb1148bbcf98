// SPDX-License-Identifier: Apache-2.0

//! The Android.bp files against the Cargo workspace, so that they do not diverge: Blueprint's
//! parser reads the former, Cargo the latter, and each module is compared with its target.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use clat_tests::can_run;
use serde_json::{Map, Value};

#[path = "soong/rules.rs"]
mod rules;

/// Not shipped, or not on Android.
const NOT_ON_ANDROID: [&str; 3] = ["clat_tests", "clat_plat", "clat_discover"];

/// Soong's names of crates that are not "lib" and underscores; and a crate that replaces another
/// there.
const NAMES: [(&str, &str); 4] = [
    ("log", "liblog_rust"),
    ("rsbinder", "libbinder_rs"),
    ("rsproperties", "librustutils"),
    (INTERFACE, "android_net_clat_aidl-V2-rust"),
];
const INTERFACE: &str = "android_net_clat_aidl";
/// Used by Cargo only: under Soong, other libraries do the same.
const STAND_INS: [&str; 2] = ["rsbinder", "rsproperties"];

/// Go, and the path of Debian's Blueprint.
const NEEDS: &[&str] =
    &["go", "/usr/share/gocode/src/github.com/google/blueprint/parser/parser.go"];

/// A module with the properties of its `defaults`.
#[derive(Debug)]
struct Module {
    folder: PathBuf,
    kind: String,
    properties: Map<String, Value>,
}

impl Module {
    fn text(&self, property: &str) -> &str {
        self.properties.get(property).and_then(Value::as_str).unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.text("name")
    }

    fn list(&self, property: &str) -> Vec<&str> {
        let list = self.properties.get(property).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    fn owned_list(&self, property: &str) -> Vec<String> {
        self.list(property).into_iter().map(str::to_owned).collect()
    }

    /// Whether others link it.
    fn is_linked(&self) -> bool {
        self.kind.starts_with("rust_library") || self.kind.starts_with("rust_ffi")
    }

    /// The only source of a Rust module, its crate root.
    fn root(&self) -> Result<PathBuf> {
        let [source] = self.list("srcs")[..] else {
            anyhow::bail!("{}: not one crate root: {:?}", self.name(), self.list("srcs"))
        };
        Ok(self.folder.join(source))
    }
}

fn repository() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?)
}

/// Files of the repository with this name, which git tracks or would add.
fn files(root: &Path, name: &str) -> Result<Vec<PathBuf>> {
    fn walk(folder: &Path, name: &str, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default();
            if path.is_dir() && !path.is_symlink() && file != "target" && file != ".git" {
                walk(&path, name, found)?;
            } else if file == name {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(root, name, &mut found)?;
    Ok(found)
}

/// The modules of every Android.bp, without BPF or with it.
fn modules(root: &Path, bpf: bool) -> Result<Vec<Module>> {
    let output = Command::new("go")
        .args(["run", "tests/soong/modules.go"])
        .args(files(root, "Android.bp")?)
        .current_dir(root)
        .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode")])
        .env("GOCACHE", std::env::temp_dir().join(format!("clat-go-{}", nix::unistd::geteuid())))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let properties = |module: &Value| {
        let mut own = module["properties"].as_object().cloned().unwrap_or_default();
        let more = own.remove("soong_config_variables").filter(|_| bpf);
        own.extend(more.and_then(|more| more["bpf"].as_object().cloned()).unwrap_or_default());
        own
    };
    let defaults: BTreeMap<String, Map<String, Value>> = found
        .iter()
        .filter(|module| module["type"].as_str().is_some_and(|t| t.ends_with("rust_defaults")))
        .filter_map(|m| Some((m["properties"]["name"].as_str()?.to_owned(), properties(m))))
        .collect();
    let read = |module: &Value| {
        Ok(Module {
            folder: root.join(module["folder"].as_str().context("no folder")?),
            kind: module["type"].as_str().context("no type")?.to_owned(),
            properties: with_defaults(properties(module), &defaults)?,
        })
    };
    found.iter().map(read).collect()
}

/// A module's own properties, then those of its defaults: lists are concatenated, for others the
/// module's own value counts.
fn with_defaults(
    mut own: Map<String, Value>,
    defaults: &BTreeMap<String, Map<String, Value>>,
) -> Result<Map<String, Value>> {
    let names = own.remove("defaults").unwrap_or_default();
    for name in names.as_array().into_iter().flatten().filter_map(Value::as_str) {
        let given = defaults.get(name).with_context(|| format!("there is no defaults {name}"))?;
        for (property, value) in with_defaults(given.clone(), defaults)? {
            match (own.get_mut(&property), value) {
                (Some(Value::Array(list)), Value::Array(more)) => list.extend(more),
                (Some(_), _) => {}
                (None, value) => {
                    own.insert(property, value);
                }
            }
        }
    }
    Ok(own)
}

/// A package of the workspace as Cargo describes it.
struct Package(Value);

impl Package {
    fn name(&self) -> &str {
        self.0["name"].as_str().unwrap_or_default()
    }

    fn folder(&self) -> PathBuf {
        let manifest = Path::new(self.0["manifest_path"].as_str().unwrap_or_default());
        manifest.parent().unwrap_or(manifest).to_owned()
    }

    /// Its targets of a kind: name and crate root.
    fn targets(&self, kind: &str) -> Vec<(&str, PathBuf)> {
        let targets = self.0["targets"].as_array().into_iter().flatten();
        let of_kind = targets.filter(|target| {
            let kinds = target["kind"].as_array();
            kinds.is_some_and(|kinds| kinds.iter().any(|k| k == kind))
        });
        of_kind
            .filter_map(|t| Some((t["name"].as_str()?, PathBuf::from(t["src_path"].as_str()?))))
            .collect()
    }

    /// Its dependencies on Android, by Soong's names. `dev` adds those of its tests.
    fn dependencies(&self, dev: bool) -> BTreeSet<String> {
        let wanted = if dev { "dev".into() } else { Value::Null };
        let all = self.0["dependencies"].as_array().into_iter().flatten();
        all.filter(|d| d["kind"] == wanted && d["optional"] == false)
            .filter(|d| d["target"].as_str().is_none_or(|cfg| !cfg.contains("not(target_os")))
            .filter_map(|d| d["name"].as_str())
            .map(soong_name)
            .collect()
    }
}

fn soong_name(package: &str) -> String {
    let other = NAMES.iter().find(|(name, _)| *name == package);
    other.map_or_else(|| format!("lib{}", package.replace('-', "_")), |(_, s)| (*s).to_owned())
}

fn workspace(root: &Path) -> Result<Vec<Package>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1"])
        .current_dir(root)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].take();
    Ok(packages.as_array().context("no packages")?.iter().cloned().map(Package).collect())
}

/// Whether the crate of this root contains the text: all files below a lib.rs or main.rs, else the
/// tests' common part.
fn says(root: &Path, text: &str) -> Result<bool> {
    fn below(folder: &Path, text: &str) -> Result<bool> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let found = if path.is_dir() {
                below(&path, text)?
            } else {
                fs::read_to_string(&path).is_ok_and(|source| source.contains(text))
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }
    match root.file_name().and_then(|name| name.to_str()) {
        Some("main.rs" | "lib.rs") => below(root.parent().context("no folder")?, text),
        _ => {
            let source = fs::read_to_string(root)?;
            let common = root.with_file_name("common");
            Ok(source.contains(text) || source.contains("mod common;") && below(&common, text)?)
        }
    }
}

#[test]
fn the_modules_are_the_workspace() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let root = repository()?;
    let (modules, packages) = (modules(&root, false)?, workspace(&root)?);
    let mut wrong = Vec::new();

    let mut names = BTreeSet::new();
    for module in modules.iter().filter(|module| !module.name().is_empty()) {
        if !names.insert(module.name()) {
            wrong.push(format!("{}: there are two", module.name()));
        }
    }
    for module in &modules {
        for property in ["srcs", "init_rc", "license_text"] {
            for source in module.list(property).iter().filter(|source| !source.contains('*')) {
                if !module.folder.join(source).is_file() {
                    wrong.push(format!("{}: {property}: no file {source}", module.name()));
                }
            }
        }
        for property in ["rustlibs", "required", "data_bins"] {
            for name in module.list(property) {
                let ours = name.starts_with("clat") || name.starts_with("libclat");
                if ours && !names.contains(name) {
                    wrong.push(format!("{}: {property}: no module {name}", module.name()));
                }
            }
        }
    }

    let shipped = packages
        .iter()
        .filter(|package| !NOT_ON_ANDROID.contains(&package.name()) && package.name() != INTERFACE);
    let mut compared = 0;
    for package in shipped {
        compared += compare(package, &modules, &mut wrong)?;
    }
    let rust = ["rust_library", "rust_binary", "rust_ffi_shared", "rust_ffi_static", "rust_test"];
    let rust = modules.iter().filter(|module| rust.contains(&module.kind.as_str())).count();
    if compared != rust {
        wrong.push(format!("{rust} Rust modules, but {compared} that belong to a shipped package"));
    }
    ensure!(wrong.is_empty(), "Android.bp and Cargo.toml differ:\n{}", wrong.join("\n"));
    Ok(())
}

/// Compares one package with its modules in its folder, and returns their number.
fn compare(package: &Package, modules: &[Module], wrong: &mut Vec<String>) -> Result<usize> {
    let ours: Vec<_> = modules.iter().filter(|module| module.folder == package.folder()).collect();
    let edition = package.0["edition"].as_str().unwrap_or_default();
    let of = |kind: &str| {
        let kind = kind.to_owned();
        ours.iter().filter(move |module| module.kind == kind)
    };
    // A module of each kind for each target with its expected name, and none without a target.
    let kinds = [
        ("lib", "rust_library"),
        ("cdylib", "rust_ffi_shared"),
        ("staticlib", "rust_ffi_static"),
        ("bin", "rust_binary"),
    ];
    let mut count = 0;
    for (cargo, soong) in kinds {
        let prefix = if cargo == "bin" { "" } else { "lib" };
        // A crate that C++ links is also a Rust library, and the modules need two names.
        let suffix = if cargo == "staticlib" { "_ffi" } else { "" };
        let targets: BTreeSet<(String, PathBuf)> = package
            .targets(cargo)
            .into_iter()
            .map(|(name, source)| (format!("{prefix}{name}{suffix}"), source))
            .collect();
        let mut found = BTreeSet::new();
        for module in of(soong) {
            let stem = module.properties.get("stem").and_then(Value::as_str);
            found.insert((stem.unwrap_or(module.name()).to_owned(), module.root()?));
            count += 1;
        }
        for (name, source) in targets.symmetric_difference(&found) {
            wrong.push(format!(
                "{}: {soong} {name} of {} is not in both",
                package.name(),
                source.display()
            ));
        }
    }

    let tests: BTreeSet<_> = of("rust_test").map(|m| m.root()).collect::<Result<_>>()?;
    let mut testable = BTreeSet::new();
    for (_, source) in package.targets("test") {
        // How Cargo finds a program; Soong has nothing like it.
        if !says(&source, "CARGO_BIN_EXE_")? {
            testable.insert(source);
        }
    }
    for kind in ["lib", "cdylib"] {
        for (_, source) in package.targets(kind) {
            if says(&source, "#[cfg(test)]")? {
                testable.insert(source);
            }
        }
    }
    for source in testable.symmetric_difference(&tests) {
        let which = if tests.contains(source) { "a rust_test of nothing" } else { "no rust_test" };
        wrong.push(format!("{}: {which}: {}", package.name(), source.display()));
    }
    count += of("rust_test").count();

    let itself = soong_name(package.name());
    let (needs, needs_dev) = (package.dependencies(false), package.dependencies(true));
    let mut used = BTreeSet::new();
    for module in ours.iter().filter(|m| m.kind.starts_with("rust_") && m.kind != "rust_defaults") {
        let libraries: BTreeSet<_> =
            module.list("rustlibs").into_iter().map(str::to_owned).collect();
        let is_test = module.kind == "rust_test";
        for library in &libraries {
            let known = *library == itself
                || needs.contains(library)
                || is_test && needs_dev.contains(library);
            if !known {
                wrong.push(format!(
                    "{}: {library} is no dependency of {}",
                    module.name(),
                    package.name()
                ));
            }
        }
        if !is_test {
            used.extend(libraries);
        }
        if module.text("edition") != edition {
            wrong.push(format!("{}: not edition {edition}", module.name()));
        }
        let target = ["lib", "cdylib", "bin", "test"]
            .iter()
            .flat_map(|kind| package.targets(kind))
            .find(|(_, source)| module.root().is_ok_and(|root| root == *source));
        if target.as_ref().map(|(name, _)| *name) != Some(module.text("crate_name")) {
            wrong.push(format!("{}: crate_name is not Cargo's {target:?}", module.name()));
        }
    }
    for library in needs.iter().filter(|library| !used.contains(*library)) {
        wrong.push(format!("{}: no module has {library}, a dependency", package.name()));
    }
    Ok(count)
}

/// The crates in AOSP, in the versions that Cargo.toml requires: the column of versions.tsv whose
/// name ends in "=".
fn carried(root: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(root.join("tests/soong/versions.tsv"))?;
    let head = text.lines().find(|line| line.starts_with("# crate\t")).context("no head")?;
    let at = head.split('\t').position(|name| name.ends_with('=')).context("no such column")?;
    let rows = rules::table(root, "versions.tsv")?.into_iter();
    rows.map(|row| Ok((row[0].clone(), row.get(at).context("a short row")?.clone()))).collect()
}

/// Every shipped third-party crate has a line in versions.tsv, which scripts/aosp_versions reads,
/// and is required in AOSP's version; or it has to be imported anyway.
#[test]
fn the_pins_are_aosp_s() -> Result<()> {
    let root = repository()?;
    let (carried, modules) = (carried(&root)?, rules::table(&root, "modules.tsv")?);
    let imported =
        |name: &str| modules.iter().any(|row| row[0] == soong_name(name) && row[1] == "import");
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    for package in workspace(&root)? {
        if NOT_ON_ANDROID.contains(&package.name()) || package.name() == INTERFACE {
            continue;
        }
        let (edition, rust) = (&package.0["edition"], &package.0["rust_version"]);
        if edition != "2021" || rust != "1.81" {
            wrong.push(format!("{}: edition {edition}, rustc {rust}", package.name()));
        }
        let dependencies = package.0["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|d| d["kind"].is_null() && !d["source"].is_null()) {
            let name = dependency["name"].as_str().unwrap_or_default();
            let elsewhere = dependency["target"].as_str().is_some_and(|t| t.contains("not("));
            if elsewhere || imported(name) || STAND_INS.contains(&name) {
                continue;
            }
            used.insert(name.to_owned());
            let required = dependency["req"].as_str().unwrap_or_default();
            let parts: Vec<_> = required.trim_start_matches('^').split('.').collect();
            match carried.get(name) {
                None => wrong.push(format!("{}: {name} is not in versions.tsv", package.name())),
                Some(version) if version.split('.').take(parts.len()).eq(parts) => {}
                Some(version) => {
                    wrong
                        .push(format!("{}: {name} {required}: AOSP has {version}", package.name()));
                }
            }
        }
    }
    for name in carried.keys().filter(|name| !used.contains(*name)) {
        wrong.push(format!("{name} is in versions.tsv, and in nothing that ships"));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The object after which bpfloader names its pins, and the interface with its backends and
/// versions.
#[test]
fn the_objects_and_the_interface() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let root = repository()?;
    let modules = modules(&root, false)?;
    let only =
        |kind: &str| modules.iter().find(|module| module.kind == kind).context(kind.to_owned());

    let bpf = only("bpf")?;
    // /sys/fs/bpf/net_shared/prog_clatrs_…, see tests/bpf_object.rs
    ensure!(bpf.name() == "clatrs.o" && bpf.list("srcs") == ["clatrs.c"]);
    ensure!(bpf.text("sub_dir") == "net_shared");

    let interface = only("aidl_interface")?;
    ensure!(interface.name() == INTERFACE, "not the crate's name: {}", interface.name());
    let backends = interface.properties["backend"].as_object().context("no backends")?;
    for backend in ["cpp", "java", "ndk", "rust"] {
        ensure!(backends[backend]["enabled"] == true, "{backend} is not enabled");
    }
    let [pattern] = interface.list("srcs")[..] else { anyhow::bail!("srcs is not one pattern") };
    let folder = interface.folder.join(pattern.trim_end_matches("*.aidl"));
    ensure!(folder.join("IClatdController.aidl").is_file(), "{}", folder.display());
    let versions = interface.properties.get("versions_with_info").and_then(Value::as_array);
    for version in versions.into_iter().flatten() {
        let number = version["version"].as_str().context("no version")?;
        let frozen = interface.folder.join("aidl_api").join(INTERFACE).join(number);
        ensure!(frozen.join(".hash").is_file(), "{} is not frozen", frozen.display());
    }
    Ok(())
}

/// Each test is in a TEST_MAPPING, and each mapped one exists.
#[test]
fn the_tests_are_mapped() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let root = repository()?;
    let tests: BTreeSet<String> = modules(&root, false)?
        .iter()
        .filter(|module| module.kind == "rust_test")
        .map(|module| module.name().to_owned())
        .collect();
    let mut mapped = BTreeSet::new();
    for file in files(&root, "TEST_MAPPING")? {
        let mapping: Value = serde_json::from_slice(&fs::read(&file)?)
            .with_context(|| file.display().to_string())?;
        for test in
            mapping.as_object().into_iter().flatten().flat_map(|(_, tests)| tests.as_array())
        {
            mapped.extend(test.iter().filter_map(|t| Some(t["name"].as_str()?.to_owned())));
        }
    }
    ensure!(mapped == tests, "mapped: {mapped:?}\nthere: {tests:?}");
    Ok(())
}

/// The files for init, the service manager and SELinux fit the modules and each other.
#[test]
fn init_and_policy_know_the_programs() -> Result<()> {
    const SERVICE: &str = "clatd_controller";
    let root = repository()?;
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| path.to_owned());
    let rc = read("src/controller/clat_controller.rc")?;
    ensure!(rc.contains("service clat_controller /system/bin/clat_controller"), "{rc}");
    ensure!(rc.contains(&format!("interface aidl {SERVICE}")), "{rc}");
    let contexts = read("sepolicy/service/file_contexts")?;
    for program in ["clat_controller", "clatd"] {
        let line = format!("/system/bin/{program} ");
        ensure!(contexts.contains(&line), "no context for {program}");
        let policy = read(&format!("sepolicy/service/{program}.te"))?;
        ensure!(policy.contains(&format!("type {program}_exec")) || program == "clatd");
    }
    ensure!(read("sepolicy/service/service_contexts")?.starts_with(SERVICE));
    ensure!(read("sepolicy/service/service.te")?.contains(&format!("type {SERVICE}_service")));
    Ok(())
}
