// SPDX-License-Identifier: Apache-2.0
//! Rules of the source tree: which crate may use which, no circles between files of a crate,
//! licence lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

/// Rows from the top down: a crate may use those of the rows below its own.
const ROWS: &[&[&str]] = &[
    &["clat_controller", "clatctl", "clat_jni", "clat_natives", "clatd", "clat_plat"],
    &["clat_host", "clat_offload", "clat_datapath"],
    &["clat_netlink", "clat_tun", "clat_sandbox"],
    &["clat_sys", "android_net_clat_aidl"],
    &["clat_discover"],
    &["clat_xlat"],
    &["clat_packet"],
];

/// Exceptions inside a row. An entry no longer needed is reported.
const BESIDE: &[(&str, &str)] = &[
    // The client's side of the service: errors, transports.
    ("clatctl", "clat_controller"),
    // Registers the natives itself.
    ("clat_jni", "clat_natives"),
];

/// Files that may test the target system.
const ASKS_FOR_THE_SYSTEM: &[&str] = &[
    // What the C library and the machine have.
    "sys/src",
    "controller/src/host",
    "controller/src/binder_adapter.rs",
    // Where the log goes.
    "controller/src/logging.rs",
    "clatd/src/logging.rs",
    "natives/src/lib.rs",
    // SELinux confines it there.
    "controller/src/confinement.rs",
    // Programs are loaded by Android's own loader.
    "offload/src/abi.rs",
    "offload/src/lib.rs",
    "offload/src/objects.rs",
    "offload/src/pins.rs",
    // Automatic CLATs, where there is no netd.
    "controller/src/lib.rs",
    "clatctl/src/lib.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn metadata() -> Result<Vec<Value>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    Ok(metadata["packages"].as_array().context("packages")?.clone())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn arrows_point_down() -> Result<()> {
    let row = |name: &str| ROWS.iter().position(|row| row.contains(&name));
    let packages = metadata()?;
    let names: BTreeSet<_> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut wrong = Vec::new();
    let mut beside = BTreeSet::new();
    for package in &packages {
        let name = text(&package["name"]);
        // Tests across crates may use all of them.
        if name == "clat_tests" {
            continue;
        }
        let Some(own) = row(name) else {
            wrong.push(format!("{name} is in no row of the table"));
            continue;
        };
        for used in package["dependencies"].as_array().context("dependencies")? {
            let (used, kind) = (text(&used["name"]), text(&used["kind"]));
            // Tests may use crates above.
            if kind == "dev" || !names.contains(used) {
                continue;
            }
            if BESIDE.contains(&(name, used)) {
                beside.insert((name, used));
            } else if row(used).is_some_and(|row| row <= own) {
                wrong.push(format!("{name} uses {used}, which is not below it"));
            }
        }
    }
    for &(name, used) in BESIDE {
        if !beside.contains(&(name, used)) {
            println!("{name} no longer uses {used}: take it out of BESIDE");
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// Every source file, below the folders that have any.
fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    // Build output, findings, frozen files, and captures.
    const NOT: &[&str] = &["target", "corpus", "artifacts", "aidl_api", "__pycache__"];
    const KINDS: &[&str] =
        &["rs", "c", "h", "cpp", "sh", "py", "java", "go", "aidl", "te", "bp", "rc"];
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if !NOT.contains(&name) {
                sources(&path, files)?;
            }
        } else if path
            .extension()
            .and_then(|kind| kind.to_str())
            .is_some_and(|k| KINDS.contains(&k))
        {
            files.push(path);
        }
    }
    Ok(())
}

fn all_sources() -> Result<Vec<PathBuf>> {
    let mut files: Vec<_> =
        ["demo", "test", ".ci/run", "Android.bp"].iter().map(|file| root().join(file)).collect();
    for folder in ["aidl", "android", "bpf_progs", "fuzz", "sepolicy", "src", "tests"] {
        sources(&root().join(folder), &mut files)?;
    }
    for script in fs::read_dir(root().join("scripts"))? {
        files.push(script?.path());
    }
    Ok(files)
}

/// As AOSP requires.
#[test]
fn every_file_says_its_licence() -> Result<()> {
    let mut wrong = Vec::new();
    for file in all_sources()? {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let head: String = text.lines().take(20).collect();
        if !head.contains("SPDX-License-Identifier: Apache-2.0")
            && !head.contains("Licensed under the Apache License, Version 2.0")
        {
            wrong.push(file);
        }
    }
    ensure!(wrong.is_empty(), "without a licence line: {wrong:#?}");
    Ok(())
}

/// A word, a punctuation mark, or `::`.
type Token = String;

/// The tokens of Rust source, without comments, strings and the contents of attributes.
fn tokens(source: &str) -> Vec<Token> {
    let bytes = source.as_bytes();
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        let begin = at;
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if let Some(end) = string(rest) {
            at += end;
        } else if bytes[at] == b'\'' {
            // A character, or a lifetime.
            let mut chars = rest.chars().skip(1);
            at += match (chars.next(), chars.next()) {
                (Some('\\'), _) => rest[3..].find('\'').map_or(rest.len(), |end| end + 4),
                (Some(c), Some('\'')) => c.len_utf8() + 2,
                _ => 1,
            };
        } else if word(bytes[at]) {
            while at < bytes.len() && word(bytes[at]) {
                at += 1;
            }
            tokens.push(source[begin..at].to_owned());
        } else {
            at += if rest.starts_with("::") { 2 } else { 1 };
            if !bytes[begin].is_ascii_whitespace() {
                tokens.push(source[begin..at].to_owned());
            }
        }
    }
    tokens
}

/// The length of the string literal that begins here, if any.
fn string(rest: &str) -> Option<usize> {
    let quoted = rest.trim_start_matches(['b', 'c']);
    if rest.len() - quoted.len() > 1 {
        return None;
    }
    let prefix = rest.len() - quoted.len();
    if let Some(raw) = quoted.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let body = raw[hashes..].strip_prefix('"')?;
        let close = format!("\"{}", "#".repeat(hashes));
        let end = body.find(&close)? + close.len();
        return Some(prefix + 1 + hashes + 1 + end);
    }
    let body = quoted.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            '"' if !escaped => return Some(prefix + 1 + at + 1),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

/// An imported path with its name; `*` for everything.
#[derive(Clone, Debug)]
struct Use {
    path: Vec<String>,
    name: String,
}

/// A file of a crate.
#[derive(Default)]
struct File {
    path: PathBuf,
    /// Child modules that are files, by name.
    children: BTreeMap<String, String>,
    uses: Vec<Use>,
    /// Paths that are named outside of `use`.
    paths: Vec<Vec<String>>,
    /// Items that it defines.
    items: BTreeSet<String>,
}

/// The end of the group that begins with the `open` at `at`.
fn skip_group(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0;
    for (end, token) in tokens.iter().enumerate().skip(at) {
        match token.as_str() {
            "{" | "[" | "(" => depth += 1,
            "}" | "]" | ")" => depth -= 1,
            _ => (),
        }
        if depth == 0 {
            return end + 1;
        }
    }
    tokens.len()
}

/// Reads a `use` tree from `at`, below `prefix`; returns its end.
fn use_tree(tokens: &[Token], mut at: usize, prefix: &[String], uses: &mut Vec<Use>) -> usize {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = use_tree(tokens, at, &path, uses);
                    if tokens.get(at).is_some_and(|token| token == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "::" => (),
            "," | "}" | ";" => break,
            "as" => {
                let name = tokens.get(at + 1).cloned().unwrap_or_default();
                uses.push(Use { path, name });
                return at + 2;
            }
            // `use a::{self}` is `use a`.
            "self" if !path.is_empty() => (),
            word => path.push(word.to_owned()),
        }
        at += 1;
    }
    let name = path.last().cloned().unwrap_or_default();
    uses.push(Use { path, name });
    at
}

/// All files of a crate by module, `""` being the root, except those for tests only.
struct Tree(BTreeMap<String, File>);

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let mut tree = Self(BTreeMap::new());
        let folder = root.parent().context("a root has a folder")?;
        tree.add("", root, folder)?;
        Ok(tree)
    }

    /// Adds a module and its children, whose files are in `folder`.
    fn add(&mut self, module: &str, path: &Path, folder: &Path) -> Result<()> {
        let source = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let tokens = tokens(&source);
        let mut file = File { path: path.to_owned(), ..File::default() };
        let mut children = Vec::new();
        let mut at = 0;
        let mut test = false;
        while at < tokens.len() {
            let next = |n: usize| tokens.get(at + n).map_or("", String::as_str);
            match (tokens[at].as_str(), next(1)) {
                ("#", "[") => {
                    let end = skip_group(&tokens, at + 1);
                    let words: Vec<_> = tokens[at..end].iter().map(String::as_str).collect();
                    test |= words == ["#", "[", "cfg", "(", "test", ")", "]"];
                    at = end;
                    continue;
                }
                ("pub", "(") => at = skip_group(&tokens, at + 1) - 1,
                ("mod", name) if next(2) == ";" => {
                    if !test {
                        children.push(name.to_owned());
                    }
                    at += 2;
                    test = false;
                }
                // Test code may use anything.
                ("mod" | "fn" | "impl" | "use" | "struct", _) if test => {
                    while !["{", ";"].contains(&tokens[at].as_str()) {
                        at += 1;
                    }
                    at = skip_group(&tokens, at) - 1;
                    test = false;
                }
                ("use", _) => at = use_tree(&tokens, at + 1, &[], &mut file.uses),
                ("fn" | "struct" | "enum" | "trait" | "type" | "const" | "static", name) => {
                    file.items.insert(name.to_owned());
                }
                ("macro_rules", "!") => {
                    file.items.insert(next(2).to_owned());
                }
                (_, "::") if at == 0 || tokens[at - 1] != "::" => {
                    let mut path = vec![tokens[at].clone()];
                    while tokens.get(at + 1).is_some_and(|token| token == "::")
                        && tokens.get(at + 2).is_some_and(|word| word != "<" && word != "{")
                    {
                        path.push(tokens[at + 2].clone());
                        at += 2;
                    }
                    file.paths.push(path);
                }
                _ => (),
            }
            at += 1;
        }
        for name in children {
            let inner = folder.join(&name);
            let path = [folder.join(format!("{name}.rs")), inner.join("mod.rs")];
            // (By a `path` attribute, as for one of two targets.)
            let Some(path) = path.iter().find(|path| path.exists()) else { continue };
            let child = if module.is_empty() { name.clone() } else { format!("{module}::{name}") };
            self.add(&child, path, &inner)?;
            file.children.insert(name, child);
        }
        self.0.insert(module.to_owned(), file);
        Ok(())
    }

    /// The module that a path in `module` refers to, if it is in this crate.
    fn resolve(&self, module: &str, path: &[String], depth: usize) -> Option<String> {
        let parent = |module: &str| module.rsplit_once("::").map_or("", |(up, _)| up).to_owned();
        let mut words = path.iter();
        let mut at = match words.next()?.as_str() {
            "crate" => String::new(),
            "self" => module.to_owned(),
            "super" => parent(module),
            child => self.0[module].children.get(child)?.clone(),
        };
        for word in words {
            let file = &self.0[&at];
            if word == "super" {
                at = parent(&at);
            } else if let Some(child) = file.children.get(word) {
                at.clone_from(child);
            } else {
                return Some(self.definition(&at, word, depth));
            }
        }
        Some(at)
    }

    /// The module that defines what `module` calls `name`.
    fn definition(&self, module: &str, name: &str, depth: usize) -> String {
        let file = &self.0[module];
        // (Circles of globs end somewhere.)
        if depth > 8 || file.items.contains(name) {
            return module.to_owned();
        }
        for used in file.uses.iter().filter(|used| used.name == name) {
            if let Some(found) = self.resolve(module, &used.path, depth + 1) {
                return found;
            }
        }
        for glob in file.uses.iter().filter(|used| used.name == "*") {
            let path = &glob.path[..glob.path.len() - 1];
            if let Some(found) = self.resolve(module, path, depth + 1) {
                let found = self.definition(&found, name, depth + 1);
                if self.0[&found].items.contains(name) {
                    return found;
                }
            }
        }
        module.to_owned()
    }

    /// The modules that each module uses.
    fn edges(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let mut edges = BTreeMap::new();
        for (module, file) in &self.0 {
            let named = file.uses.iter().map(|used| &used.path).chain(&file.paths);
            let used = named.filter_map(|path| self.resolve(module, path, 0));
            edges.insert(module.as_str(), used.filter(|used| used != module).collect());
        }
        edges
    }

    /// The modules in circles, one set per circle.
    ///
    /// A module and its children may use each other. So circles are searched twice: without the
    /// edges from children to parents, and without the reverse ones.
    fn circles(&self) -> Vec<BTreeSet<String>> {
        let inside = |inner: &str, outer: &str| {
            outer.is_empty() || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with("::"))
        };
        let edges = self.edges();
        let mut circles: Vec<BTreeSet<String>> = Vec::new();
        for up in [false, true] {
            let allowed =
                |from: &str, to: &str| !if up { inside(to, from) } else { inside(from, to) };
            let reach: BTreeMap<&str, BTreeSet<&str>> = edges
                .keys()
                .map(|&from| {
                    let mut found = BTreeSet::new();
                    let mut ahead = vec![from];
                    while let Some(at) = ahead.pop() {
                        for to in &edges[at] {
                            if allowed(at, to) && found.insert(to.as_str()) {
                                ahead.push(to);
                            }
                        }
                    }
                    (from, found)
                })
                .collect();
            for (module, found) in &reach {
                let circle: BTreeSet<String> = found
                    .iter()
                    .filter(|other| reach[**other].contains(module))
                    .map(|other| (*other).to_owned())
                    .collect();
                if circle.len() > 1 && !circles.contains(&circle) {
                    circles.push(circle);
                }
            }
        }
        circles
    }
}

/// Characters of a line: rustfmt lets strings, macros and comments be longer.
const WIDTH: usize = 100;

#[test]
fn no_line_is_too_wide() -> Result<()> {
    let mut wide = Vec::new();
    for file in all_sources()? {
        let is_ours = |kind| ["rs", "sh"].map(Some).contains(&kind);
        // The commands `test` and `demo` have no extension.
        if !is_ours(file.extension().map_or(Some("sh"), |kind| kind.to_str())) {
            continue;
        }
        let source = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let lines = (1..).zip(source.lines());
        let lines = lines.filter(|(_, line)| line.chars().count() > WIDTH);
        wide.extend(lines.map(|(at, _)| format!("{}:{at}", file.display())));
    }
    ensure!(wide.is_empty(), "wider than {WIDTH}: {wide:#?}");
    Ok(())
}

#[test]
fn no_circle_of_files() -> Result<()> {
    let top = fs::canonicalize(root())?;
    let mut wrong = Vec::new();
    for package in metadata()? {
        for target in package["targets"].as_array().context("targets")? {
            let kind = text(&target["kind"][0]);
            if !["lib", "rlib", "cdylib", "staticlib", "bin"].contains(&kind) {
                continue;
            }
            let tree = Tree::read(Path::new(text(&target["src_path"])))?;
            for circle in tree.circles() {
                let files = circle.iter().map(|module| {
                    let path = &tree.0[module].path;
                    path.strip_prefix(&top).unwrap_or(path).display().to_string()
                });
                wrong.push(files.collect::<Vec<_>>());
            }
        }
    }
    ensure!(wrong.is_empty(), "files that use each other: {wrong:#?}");
    Ok(())
}

#[test]
fn the_natives_link_neither_binder_nor_bpf() -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--edges", "normal,build", "--prefix", "none"])
        .args(["--package", "clat_jni", "--format", "{lib}"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout)?;
    let crates: BTreeSet<_> = tree.split_whitespace().collect();
    ensure!(crates.contains("clat_host") && crates.contains("jni"), "{crates:?}");
    for part in ["binder", "aidl", "bpf", "clat_controller", "clat_offload", "clatd"] {
        let found: Vec<_> = crates.iter().filter(|name| name.contains(part)).collect();
        ensure!(found.is_empty(), "libclat_jni.so has {found:?}");
    }
    Ok(())
}

/// Code for Android runs elsewhere, too, except in these files.
#[test]
fn few_files_ask_for_the_system() -> Result<()> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files)?;
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs")) {
        let place = file.strip_prefix(root().join("src"))?;
        let may = ASKS_FOR_THE_SYSTEM.iter().any(|allowed| place.starts_with(allowed));
        if !may && tokens(&fs::read_to_string(file)?).iter().any(|token| token == "target_os") {
            wrong.push(place.display().to_string());
        }
    }
    ensure!(wrong.is_empty(), "ask for target_os: {wrong:?}");
    Ok(())
}

/// docs/architecture.md lists exactly the existing files.
#[test]
fn every_file_is_in_the_architecture() -> Result<()> {
    let page = fs::read_to_string(root().join("docs/architecture.md"))?;
    let (mut listed, mut folder) = (BTreeSet::new(), PathBuf::new());
    for line in page.lines() {
        if let Some(crate_) = line.strip_prefix("### `").and_then(|l| l.strip_suffix('`')) {
            folder = Path::new(crate_).join("src");
        } else if let Some((file, _)) = line.strip_prefix("| `").and_then(|l| l.split_once('`')) {
            listed.insert(folder.join(file));
        }
    }
    let mut files = Vec::new();
    for crate_ in fs::read_dir(root().join("src"))? {
        sources(&crate_?.path().join("src"), &mut files)?;
    }
    let there = files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs"));
    let there = there.map(|file| Ok(file.strip_prefix(root())?.to_owned()));
    let there = there.collect::<Result<BTreeSet<_>>>()?;
    let missing: Vec<_> = there.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&there).collect();
    ensure!(missing.is_empty() && gone.is_empty(), "missing: {missing:#?}, gone: {gone:#?}");
    Ok(())
}
