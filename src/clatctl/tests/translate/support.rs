// SPDX-License-Identifier: Apache-2.0

//! A temporary folder for each test, handmade captures, and the program.

use std::borrow::Cow;
use std::path::PathBuf;
use std::process::{Command, Output};

use pcap_file::pcap::{PcapHeader, PcapReader, PcapWriter, RawPcapPacket};
use pcap_file::{DataLink, Endianness, TsResolution};
use tempfile::TempDir;

pub(crate) const RAW: u32 = 101;
pub(crate) const ETHERNET: u32 = 1;
pub(crate) const COOKED: u32 = 113;

/// A temporary folder in which the program runs.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names of the files in it, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// `clatctl translate` with these words, split at blanks.
    pub(crate) fn translate(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clatctl"));
        command
            .current_dir(self.0.path())
            .arg("translate")
            .args(words.split_whitespace())
            .output()
            .unwrap()
    }
}

/// What a program wrote to stdout.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What it wrote to stderr, which must be one line.
pub(crate) fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one line is wanted: {text}");
    text
}

/// Asserts success and an empty stderr.
#[track_caller]
pub(crate) fn assert_ok(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

pub(crate) fn header(link: u32, endianness: Endianness, ts_resolution: TsResolution) -> PcapHeader {
    PcapHeader {
        datalink: DataLink::from(link),
        endianness,
        ts_resolution,
        ..PcapHeader::default()
    }
}

/// A pcap of these frames; times are 1000 s, 1001 s and so on, each plus 7 units.
pub(crate) fn pcap_as(header: PcapHeader, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    for (at, frame) in (1000..).zip(frames) {
        let len = u32::try_from(frame.len()).unwrap();
        let data = Cow::Borrowed(&frame[..]);
        writer
            .write_raw_packet(&RawPcapPacket {
                ts_sec: at,
                ts_frac: 7,
                incl_len: len,
                orig_len: len,
                data,
            })
            .unwrap();
    }
    writer.into_writer()
}

/// A pcap in the most common format.
pub(crate) fn pcap(link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    pcap_as(header(link, Endianness::Little, TsResolution::MicroSecond), frames)
}

/// The contents of a pcap: its header, then seconds, fraction and bytes of each packet.
pub(crate) fn parse(bytes: &[u8]) -> (PcapHeader, Vec<(u32, u32, Vec<u8>)>) {
    let mut reader = PcapReader::new(bytes).unwrap();
    let header = reader.header();
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_raw_packet() {
        let packet = packet.unwrap();
        assert_eq!(packet.incl_len, packet.orig_len);
        packets.push((packet.ts_sec, packet.ts_frac, packet.data.into_owned()));
    }
    (header, packets)
}

/// The bytes of a pcap's packets.
pub(crate) fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    parse(bytes).1.into_iter().map(|(_, _, data)| data).collect()
}
