// SPDX-License-Identifier: Apache-2.0
//! Soong's rules for modules that no parser checks: names, visibility, and what
//! com.android.tethering allows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use clat_tests::can_run;

use super::{modules, repository, Module, INTERFACE, NEEDS};

/// The repository's place in AOSP, by docs/android.md.
const HOME: &str = "//external/clat";

/// The Mainline module for clatd, the natives and the programs, and its oldest release.
const APEX: &str = "com.android.tethering";
const APEX_MIN_SDK: u32 = 30;

/// AOSP's files that name our modules, after the changes of docs/android.md.
const USED_BY: [(&str, &str); 5] = [
    ("libclat_natives_ffi", "//packages/modules/Connectivity/service"),
    ("clatd-rs_for_system", "//packages/modules/Connectivity/Tethering/apex"),
    ("clatrs.o", "//packages/modules/Connectivity/Tethering/apex"),
    (INTERFACE, "//system/netd/server"),
    // The compiler's own modules depend on each interface.
    (INTERFACE, "//system/tools/aidl/build"),
];

/// Properties by which one module depends on another.
const EDGES: [&str; 7] = [
    "default_applicable_licenses",
    "defaults",
    "proc_macros",
    "required",
    "rustlibs",
    "shared_libs",
    "static_libs",
];

/// A module of AOSP's that ours depend on: a line of tests/soong/modules.tsv.
struct Theirs {
    apex: Vec<String>,
    min_sdk: Option<u32>,
    visible: Vec<String>,
}

/// The lines of a table, by column.
pub(super) fn table(root: &Path, name: &str) -> Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(root.join("tests/soong").join(name))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines.map(|line| line.split('\t').map(str::to_owned).collect()).collect())
}

fn theirs(root: &Path) -> Result<BTreeMap<String, Theirs>> {
    let list = |text: &str| text.split(',').map(str::to_owned).collect();
    let read = |line: Vec<String>| {
        let [name, apex, min_sdk, visible] = &line[..] else { anyhow::bail!("{line:?}") };
        let min_sdk = (min_sdk != "-").then(|| min_sdk.parse()).transpose()?;
        Ok((name.clone(), Theirs { apex: list(apex), min_sdk, visible: list(visible) }))
    };
    table(root, "modules.tsv")?.into_iter().map(read).collect()
}

/// A module's Soong package, "//external/clat/src/xlat".
fn package(root: &Path, module: &Module) -> Result<String> {
    let folder = module.folder.strip_prefix(root)?.to_str().context("not UTF-8")?;
    Ok(format!("{HOME}/{folder}").trim_end_matches('/').to_owned())
}

/// Whether `rules` of the package `at` make it visible to the package `who`. A package always sees
/// its own modules.
fn lets_in(rules: &[String], at: &str, who: &str) -> bool {
    at == who
        || rules.iter().any(|rule| {
            let rule = if rule.starts_with(':') { format!("{at}{rule}") } else { rule.clone() };
            match rule.split_once(':') {
                Some(("//visibility", which)) => which == "public",
                Some((package, "__subpackages__")) => {
                    who == package || who.starts_with(&format!("{package}/"))
                }
                Some((package, "__pkg__")) => who == package,
                _ => who == rule,
            }
        })
}

/// Soong's errors about our modules, given AOSP's.
fn complaints(root: &Path, modules: &[Module]) -> Result<Vec<String>> {
    let theirs = theirs(root)?;
    let taken: BTreeSet<_> = table(root, "names.tsv")?.into_iter().flatten().collect();
    let mut wrong = Vec::new();

    // A package's default visibility: that of the nearest one above.
    let mut defaults = BTreeMap::new();
    for module in modules.iter().filter(|module| module.kind == "package") {
        defaults.insert(package(root, module)?, module.owned_list("default_visibility"));
    }
    let visibility = |module: &Module| -> Result<(Vec<String>, String)> {
        let at = package(root, module)?;
        if module.properties.contains_key("visibility") {
            return Ok((module.owned_list("visibility"), at));
        }
        let above = defaults
            .iter()
            .filter(|(package, _)| lets_in(&[format!("{package}:__subpackages__")], package, &at));
        let nearest = above.max_by_key(|(package, _)| package.len());
        Ok(nearest.map_or((vec!["//visibility:public".to_owned()], at), |(p, rules)| {
            (rules.clone(), p.clone())
        }))
    };
    let by_name: BTreeMap<_, _> = modules.iter().map(|module| (module.name(), module)).collect();
    // A backend's library has the interface's visibility.
    let find = |name: &str| {
        let interface = name.strip_prefix(INTERFACE).filter(|rest| rest.starts_with("-V"));
        by_name.get(interface.map_or(name, |_| INTERFACE)).copied()
    };
    let sees = |who: &str, module: &Module| -> Result<bool> {
        let (rules, at) = visibility(module)?;
        Ok(who == package(root, module)? || lets_in(&rules, &at, who))
    };

    for module in modules {
        let (name, who) = (module.name(), package(root, module)?);
        if module.kind == "soong_namespace" {
            wrong.push(format!("{who}: AOSP's files can name no module of a namespace"));
        }
        if taken.contains(name) {
            wrong.push(format!("{name}: AOSP has a module of that name"));
        }
        for edge in EDGES {
            for dependency in module.list(edge) {
                if let Some(ours) = find(dependency) {
                    if !sees(&who, ours)? {
                        wrong.push(format!("{name}: {edge}: {dependency} is not visible to {who}"));
                    }
                    if in_apex(module) && ours.is_linked() && !in_apex(ours) {
                        wrong.push(format!("{name}: {dependency} may not enter {APEX}"));
                    }
                } else if let Some(module) = theirs.get(dependency) {
                    let public = module.visible == ["public"];
                    if !public && !lets_in(&module.visible, "", &who) {
                        wrong.push(format!(
                            "{name}: {dependency} is visible to {:?} alone",
                            module.visible
                        ));
                    }
                } else {
                    wrong.push(format!(
                        "{name}: {edge}: {dependency} is neither ours nor in modules.tsv"
                    ));
                }
            }
        }
        if !in_apex(module) {
            continue;
        }
        if module.text("min_sdk_version").parse::<u32>().map_or(true, |sdk| sdk > APEX_MIN_SDK) {
            wrong.push(format!(
                "{name}: min_sdk_version is not {APEX_MIN_SDK} or less, as {APEX} needs"
            ));
        }
        for (dependency, theirs) in
            module.list("rustlibs").iter().filter_map(|d| theirs.get_key_value(*d))
        {
            let enters = theirs.apex.iter().any(|apex| apex == "any" || apex == APEX);
            // An importer of a crate sets these.
            let imported = theirs.apex == ["import"];
            if !(imported || enters && theirs.min_sdk.is_some_and(|sdk| sdk <= APEX_MIN_SDK)) {
                wrong.push(format!(
                    "{name}: {dependency} may not enter {APEX}, or is not built for {APEX_MIN_SDK}"
                ));
            }
        }
    }
    for (name, user) in USED_BY {
        let module = by_name.get(name).with_context(|| format!("there is no {name}"))?;
        if !sees(user, module)? {
            wrong.push(format!("{name}: not visible to {user}, which uses it"));
        }
    }
    Ok(wrong)
}

/// Whether it is part of the Mainline module; tests inherit this from what they test, but are not.
fn in_apex(module: &Module) -> bool {
    module.kind != "rust_test" && module.list("apex_available").contains(&APEX)
}

#[test]
fn soong_would_accept_the_modules() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let root = repository()?;
    let wrong = complaints(&root, &modules(&root, false)?)?;
    ensure!(wrong.is_empty(), "Soong would refuse:\n{}", wrong.join("\n"));
    Ok(())
}

/// Only what is built with BPF links libbpf, which docs/android.md makes visible for that.
#[test]
fn libbpf_is_for_the_flavour_with_bpf() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let root = repository()?;
    let wrong = complaints(&root, &modules(&root, true)?)?;
    let hidden = "liblibbpf_rs is visible to [\"//system/bpf/loader\"] alone";
    ensure!(!wrong.is_empty() && wrong.iter().all(|line| line.ends_with(hidden)), "{wrong:#?}");
    Ok(())
}

/// Nothing is said of modules that are not used.
#[test]
fn the_table_of_modules_is_of_those_used() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let root = repository()?;
    let modules = modules(&root, true)?;
    let used: BTreeSet<_> =
        modules.iter().flat_map(|module| EDGES.map(|edge| module.list(edge)).concat()).collect();
    let known = theirs(&root)?;
    let unused: Vec<_> = known.keys().filter(|name| !used.contains(name.as_str())).collect();
    ensure!(unused.is_empty(), "in modules.tsv, and not used: {unused:?}");
    Ok(())
}

/// Former mistakes are noticed.
#[test]
fn soong_would_refuse_what_it_refused() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let root = repository()?;
    let breaks: [(&str, &str, serde_json::Value, &str); 7] = [
        ("clatd-rs", "name", "clatd".into(), "AOSP has a module of that name"),
        ("libclatd", "min_sdk_version", "33".into(), "min_sdk_version is not 30"),
        (
            INTERFACE,
            "visibility",
            vec![":__subpackages__"].into(),
            "is not visible to //external/clat/src/controller",
        ),
        (
            INTERFACE,
            "visibility",
            vec!["//external/clat:__subpackages__"].into(),
            "not visible to //system/tools/aidl/build",
        ),
        (
            "libclat_tun",
            "apex_available",
            vec!["//apex_available:platform"].into(),
            "libclat_tun may not enter",
        ),
        ("libclatd", "rustlibs", vec!["libjni"].into(), "libjni may not enter"),
        ("libclatd", "rustlibs", vec!["liblibbpf_rs"].into(), "liblibbpf_rs may not enter"),
    ];
    for (name, property, value, complaint) in breaks {
        let mut modules = modules(&root, false)?;
        let module =
            modules.iter_mut().find(|m| m.name() == name).with_context(|| name.to_owned())?;
        module.properties.insert(property.to_owned(), value);
        let wrong = complaints(&root, &modules)?;
        ensure!(wrong.iter().any(|line| line.contains(complaint)), "{name} {property}: {wrong:?}");
    }
    Ok(())
}
