// SPDX-License-Identifier: Apache-2.0

//! The BPF object as Soong builds it from `bpf_progs/clatrs.c`, checked by the rules of Android's
//! network loader, so that what it would refuse, skip or silently ignore fails here, and against
//! the Java classes that fill its maps. The rules are those of bpf/loader/NetBpfLoad.cpp in
//! packages/modules/Connectivity, main of 2025-03 and android15-qpr2, by reading.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure, Context, Result};
use clat_offload::{program_name, MAPS, PROGRAMS};
use clat_tests::{can_run, compile_bpf};
use libbpf_rs::btf::types::{Composite, DataSec, Int, MemberAttr, Struct, StructMember, Var};
use libbpf_rs::btf::{Btf, BtfType};
use libbpf_rs::HasSize;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};

/// sizeof(struct bpf_map_def) and of bpf_prog_def: the loader reads arrays of them.
const MAP_DEF: usize = 120;
const PROG_DEF: usize = 92;

/// The network loader's version on Android 13, the first with net_shared.
const LOADER: u32 = 43;

/// Bytes of an instruction, and two codes (linux/bpf.h).
const INSTRUCTION: usize = 8;
const LD_IMM64: u8 = 0x18;
const CALL: u8 = 0x85;

/// Prefix of the pins' names: the file's name up to the dot.
const NAME: &str = "clatrs";

/// Bytes of a field of AOSP's Struct.java.
const S32: usize = 4;
const U63: usize = 8;
const IPV4_ADDRESS: usize = 4;
const IPV6_ADDRESS: usize = 16;
const U8_PADDED_BY_3: usize = 4;

/// The Java classes by which ClatCoordinator reads and writes the maps, ClatEgress4Key,
/// ClatEgress4Value, ClatIngress6Key, ClatIngress6Value (common/src/com/android/net/module/util/bpf
/// in packages/modules/Connectivity, main of 2025-03 and android15-qpr2): their fields in order.
#[allow(clippy::type_complexity)]
const JAVA: [(&str, &str, &[(&str, usize)]); 4] = [
    ("clat_egress_map", "key", &[("iif", S32), ("local4", IPV4_ADDRESS)]),
    (
        "clat_egress_map",
        "value",
        &[
            ("oif", S32),
            ("local6", IPV6_ADDRESS),
            ("pfx96", IPV6_ADDRESS),
            ("oifIsEthernet", U8_PADDED_BY_3),
            ("packets", U63),
            ("bytes", U63),
        ],
    ),
    ("clat_ingress_map", "key", &[("iif", S32), ("pfx96", IPV6_ADDRESS), ("local6", IPV6_ADDRESS)]),
    (
        "clat_ingress_map",
        "value",
        &[("oif", S32), ("local4", IPV4_ADDRESS), ("packets", U63), ("bytes", U63)],
    ),
];

/// An object as the loader sees it.
struct Loaded<'d> {
    file: ElfFile64<'d>,
}

impl<'d> Loaded<'d> {
    fn section(&self, name: &str) -> Result<&'d [u8]> {
        let section = self.file.section_by_name(name).with_context(|| format!("no {name}"))?;
        Ok(section.data()?)
    }

    fn number(&self, section: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.section(section)?.try_into().context("not four bytes")?))
    }

    /// The symbols of a section by address: the loader takes one for each record there.
    fn symbols(&self, section: &str, kind: Option<SymbolKind>) -> Result<Vec<String>> {
        let index = self.file.section_by_name(section).map(|section| section.index());
        let index = index.with_context(|| format!("no {section}"))?;
        let mut symbols: Vec<_> = self
            .file
            .symbols()
            .filter(|symbol| symbol.section_index() == Some(index))
            .filter(|symbol| kind.is_none_or(|kind| symbol.kind() == kind))
            .collect();
        symbols.sort_by_key(ObjectSymbol::address);
        symbols.iter().map(|symbol| Ok(symbol.name()?.to_owned())).collect()
    }

    /// The records of a section, with the names that they have.
    fn defs(&self, section: &str, size: usize) -> Result<Vec<(String, &'d [u8])>> {
        let data = self.section(section)?;
        ensure!(data.len() % size == 0, "{section}: {} bytes, not of {size} each", data.len());
        let names = self.symbols(section, None)?;
        ensure!(names.len() == data.len() / size, "{section}: {names:?} for {} bytes", data.len());
        Ok(names.into_iter().zip(data.chunks(size)).collect())
    }
}

/// The number at this offset of a record.
fn word(record: &[u8], at: usize) -> u32 {
    record[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

/// The object as Soong makes it: compiled, and stripped of what the loader does not read.
fn build(folder: &Path) -> Result<PathBuf> {
    let (object, stripped) = (folder.join("unstripped.o"), folder.join("stripped.o"));
    let source = format!("bpf_progs/{NAME}.c");
    compile_bpf(source.as_ref(), &["-Wextra", "-Itests/soong"], &object)?;
    let status = Command::new("llvm-strip")
        .args(["--strip-unneeded", "--remove-section=.rel.BTF", "--remove-section=.rel.BTF.ext"])
        .arg("--remove-section=.BTF.ext")
        .arg(&object)
        .arg("-o")
        .arg(&stripped)
        .status()?;
    ensure!(status.success(), "llvm-strip");
    Ok(stripped)
}

/// The size of a type of a key or value.
fn size(ty: BtfType<'_>) -> Result<usize> {
    let ty = ty.skip_mods_and_typedefs();
    let composite = Composite::try_from(ty).map(|composite| composite.size());
    composite
        .or_else(|ty| Int::try_from(ty).map(|int| int.size()))
        .map_err(|ty| anyhow::anyhow!("neither struct nor number: {ty:?}"))
}

/// Whether the loader accepts the object, and reads it as intended.
fn check_object(loaded: &Loaded<'_>) -> Result<()> {
    ensure!(loaded.section("license")? == b"Apache 2.0\0");
    // A critical object that does not load ends the boot.
    ensure!(loaded.file.section_by_name("critical").is_none(), "critical");
    let versions = loaded.number("bpfloader_min_ver")?..loaded.number("bpfloader_max_ver")?;
    ensure!(versions.contains(&LOADER), "for loaders {versions:?}");
    for (section, size) in [("size_of_bpf_map_def", MAP_DEF), ("size_of_bpf_prog_def", PROG_DEF)] {
        ensure!(loaded.section(section)? == size.to_le_bytes(), "{section}");
    }
    // Sections that it does not know, without which it would load the programs.
    for section in loaded.file.sections() {
        let name = section.name()?;
        let unknown = [".text", ".data", ".bss", ".rodata"].iter().any(|s| name.starts_with(s));
        ensure!(!unknown || section.size() == 0, "{} bytes of {name}", section.size());
    }
    Ok(())
}

/// The types for the kernel, which needs the section of every variable.
fn check_variables(loaded: &Loaded<'_>, btf: &Btf<'_>) -> Result<()> {
    for section in btf.type_by_kind::<DataSec<'_>>() {
        let name = section.name().context("a section without a name")?.to_string_lossy();
        loaded.section(&name)?;
        let symbols = loaded.symbols(&name, None)?;
        for variable in section.iter() {
            let variable: Var<'_> = btf.type_by_id(variable.ty).context("no variable")?;
            let variable = variable.name().unwrap_or_default().to_string_lossy().into_owned();
            ensure!(symbols.contains(&variable), "{name}: {variable} is not in {symbols:?}");
        }
    }
    Ok(())
}

/// The maps, each with a struct of its key and value among the types. Returns their pins.
fn check_maps(loaded: &Loaded<'_>, btf: &Btf<'_>) -> Result<Vec<String>> {
    let mut pins = Vec::new();
    for (name, def) in loaded.defs("maps", MAP_DEF)? {
        let pair: Struct<'_> = btf
            .type_by_name(&format!("____btf_map_{name}"))
            .with_context(|| format!("map {name}: no types of key and value"))?;
        let member = |member: StructMember<'_>| {
            Ok(u32::try_from(size(btf.type_by_id(member.ty).context("no type")?)?)?)
        };
        let sizes = pair.iter().map(member).collect::<Result<Vec<u32>>>()?;
        ensure!(sizes == [word(def, 4), word(def, 8)], "map {name}: types of {sizes:?} bytes");
        // "zero": the loader aborts where it is not.
        ensure!(word(def, 20) == 0, "map {name}");
        // The group is AID_SYSTEM's, which reads and writes.
        ensure!((word(def, 24), word(def, 28)) == (1000, 0o660), "map {name}: group, mode");
        ensure!((word(def, 32)..word(def, 36)).contains(&LOADER), "map {name}: loaders");
        ensure!((word(def, 40), word(def, 44)) == (0, u32::MAX), "map {name}: kernels");
        // The object's context, folder and build.
        ensure!(def[48..116].iter().all(|byte| *byte == 0), "map {name}");
        pins.push(format!("map_{NAME}_{name}"));
    }
    Ok(pins)
}

/// The programs: each has its section with one function, and a record of its name. Returns their
/// pins.
fn check_programs(loaded: &Loaded<'_>) -> Result<Vec<String>> {
    let defs = loaded.defs("progs", PROG_DEF)?;
    let maps = loaded.symbols("maps", None)?;
    let sections: Vec<_> = loaded.file.sections().collect();
    let mut pins = Vec::new();
    for (at, section) in sections.iter().enumerate() {
        let name = section.name()?;
        // The type of netd's and the controller's filters.
        if !name.starts_with("schedcls/") {
            continue;
        }
        let functions = loaded.symbols(name, Some(SymbolKind::Text))?;
        ensure!(functions.len() == 1, "{name}: {functions:?}");
        let def = defs.iter().find(|(def, _)| *def == format!("{}_def", functions[0]));
        let (_, def) = def.with_context(|| format!("{name}: no record"))?;
        ensure!((word(def, 0), word(def, 4)) == (0, 1000), "{name}: owner, group");
        // bpf_redirect_neigh.
        ensure!((word(def, 8), word(def, 12)) == (0x050a_0000, u32::MAX), "{name}: kernels");
        ensure!(def[16] == 1, "{name}: not optional: a kernel that refuses it does not boot");
        ensure!((word(def, 20)..word(def, 24)).contains(&LOADER), "{name}: loaders");
        ensure!(def[17..20].iter().chain(&def[28..]).all(|byte| *byte == 0), "{name}");

        // It takes the next section for the relocations, and uses those of maps only.
        let next = sections.get(at + 1).context("no relocations")?;
        ensure!(next.name()? == format!(".rel{name}"), "{name} is before {}", next.name()?);
        let code = section.data()?;
        let instruction = |at: usize| &code[at..at + INSTRUCTION];
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else {
                anyhow::bail!("{name}: {relocation:?}")
            };
            let symbol = loaded.file.symbol_by_index(symbol)?.name()?;
            ensure!(maps.iter().any(|map| map == symbol), "{name}: {symbol} is no map");
            let offset = usize::try_from(offset)?;
            ensure!(instruction(offset)[0] == LD_IMM64, "{name}: {symbol} at {offset}");
        }
        // It does not link other functions: each program is one.
        let calls = (0..code.len()).step_by(INSTRUCTION).map(instruction);
        let mut calls = calls.filter(|code| code[0] == CALL);
        ensure!(calls.all(|call| call[1] >> 4 == 0), "{name}: a call of a function");
        pins.push(format!("prog_{NAME}_{}", name.replace('/', "_")));
    }
    ensure!(pins.len() == defs.len(), "{pins:?} of {} records", defs.len());
    Ok(pins)
}

/// The members of a struct and their offsets.
fn offsets(of: &Struct<'_>) -> Result<Vec<(String, usize)>> {
    let member = |member: StructMember<'_>| {
        let MemberAttr::Normal { offset } = member.attr else { bail!("a bit field") };
        let name = member.name.context("a member without a name")?;
        Ok((name.to_string_lossy().into_owned(), offset as usize / 8))
    };
    of.iter().map(member).collect()
}

/// BpfMap.java takes a map whose key and value have its classes' sizes, and each field from where
/// the one before ends.
fn check_java(btf: &Btf<'_>) -> Result<()> {
    for (map, part, fields) in JAVA {
        let pair: Struct<'_> =
            btf.type_by_name(&format!("____btf_map_{map}")).with_context(|| map.to_owned())?;
        let found = pair.iter().find(|member| member.name.is_some_and(|name| name == part));
        let found: Struct<'_> = found
            .and_then(|member| btf.type_by_id::<BtfType<'_>>(member.ty))
            .and_then(|ty| ty.skip_mods_and_typedefs().try_into().ok())
            .with_context(|| format!("{map}: no {part}"))?;
        let mut at = 0;
        let mut expected = Vec::new();
        for (name, size) in fields {
            expected.push(((*name).to_owned(), at));
            at += size;
        }
        let mut offsets = offsets(&found)?;
        offsets.retain(|(name, _)| name != "pad");
        ensure!(offsets == expected, "{map}: {part}: {offsets:?}, in Java {expected:?}");
        ensure!(found.size() == at, "{map}: {part} of {} bytes, in Java {at}", found.size());
    }
    Ok(())
}

/// docs/android.md has the lines of ClatCoordinator that use our pins.
fn check_page(pins: &[String]) -> Result<()> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/android.md"))?;
    let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let named: BTreeSet<_> = words
        .filter(|word| ["map_", "prog_"].iter().any(|what| word.starts_with(what)))
        .filter(|word| word.contains("_clatrs_"))
        .collect();
    let wrong: Vec<_> = named.iter().filter(|name| !pins.iter().any(|pin| pin == *name)).collect();
    ensure!(wrong.is_empty(), "docs/android.md names pins that are none: {wrong:?}");
    // Two maps, and the programs but that for Ethernet on the way out, where there is a TUN device.
    ensure!(named.len() >= 5, "docs/android.md names {named:?}");
    Ok(())
}

#[test]
fn the_network_loader_takes_it() -> Result<()> {
    if !can_run(&["clang", "llvm-strip"]) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let path = build(folder.path())?;
    let data = std::fs::read(&path)?;
    let loaded = Loaded { file: ElfFile64::parse(&*data)? };
    let btf = Btf::from_path(&path)?;
    check_object(&loaded)?;
    check_variables(&loaded, &btf)?;
    let mut pins = check_maps(&loaded, &btf)?;
    pins.extend(check_programs(&loaded)?);
    pins.sort();
    // The expected names in /sys/fs/bpf/net_shared.
    let used = PROGRAMS.map(|(hook, link)| program_name(hook, link));
    let used = MAPS.iter().map(|map| map.name).chain(used);
    let mut expected: Vec<_> = used.map(|pin| pin.replacen("_clatd_", "_clatrs_", 1)).collect();
    expected.push("map_clatrs_clat_scratch_map".to_owned());
    expected.sort();
    ensure!(pins == expected, "pinned: {pins:#?}");
    check_java(&btf)?;
    check_page(&pins)
}
