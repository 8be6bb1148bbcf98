// SPDX-License-Identifier: Apache-2.0

//! Reading captures: pcap of either byte order and time resolution, and pcapng.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context};
use byteorder_slice::{BigEndian, ByteOrder, LittleEndian};
use pcap_file::pcap::{PcapHeader, PcapReader, RawPcapPacket};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader, RawBlock};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

use super::report::Skip;
use super::sink::is_stdio;

/// Most bytes of a captured packet: libpcap's limit for these link types.
pub(super) const MAX_CAPTURED: usize = 256 * 1024;

/// LINKTYPE_RAW.
const RAW: u32 = 101;

// Block types of pcapng (draft-ietf-opsawg-pcapng §4).
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

type Input = Box<dyn Read>;

/// A capture being read.
pub(super) struct Capture {
    format: Format,
    /// Number of packets read.
    count: u64,
}

enum Format {
    Pcap(PcapReader<Input>),
    PcapNg { reader: PcapNgReader<Input>, link_type: Option<u32> },
}

/// One captured packet, with its time in the units of [`Capture::header`].
#[derive(Default)]
pub(super) struct Record {
    seconds: u32,
    fraction: u32,
    original_len: usize,
    /// The frame from its link header on.
    pub(super) data: Vec<u8>,
}

impl Record {
    /// The frame, if the capture has all of it.
    pub(super) fn whole(&self) -> Result<&[u8], Skip> {
        if self.data.len() < self.original_len {
            return Err(Skip::CutShort);
        }
        Ok(&self.data)
    }

    /// A record with the same time and other bytes.
    pub(super) fn like<'f>(&self, frame: &'f [u8]) -> anyhow::Result<RawPcapPacket<'f>> {
        let len = u32::try_from(frame.len()).context("a packet of over 4 GiB")?;
        Ok(RawPcapPacket {
            ts_sec: self.seconds,
            ts_frac: self.fraction,
            incl_len: len,
            orig_len: len,
            data: Cow::Borrowed(frame),
        })
    }

    fn set(&mut self, data: &[u8], original_len: u32) -> anyhow::Result<()> {
        let original_len = usize::try_from(original_len)?;
        let len = data.len();
        ensure!(
            len <= MAX_CAPTURED,
            "claims {len} bytes; no packet has over {MAX_CAPTURED}: the file is damaged"
        );
        ensure!(
            len <= original_len,
            "claims {len} bytes captured of {original_len}: the file is damaged"
        );
        self.data.clear();
        self.data.extend_from_slice(data);
        self.original_len = original_len;
        Ok(())
    }
}

impl Capture {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let input: Input =
            if is_stdio(path) { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
        Self::new(input)
    }

    pub(super) fn new(mut input: Input) -> anyhow::Result<Self> {
        let mut magic = Vec::new();
        input.by_ref().take(4).read_to_end(&mut magic)?;
        let pcapng = magic == [0x0a, 0x0d, 0x0d, 0x0a];
        let pcap = [[0xa1, 0xb2, 0xc3, 0xd4], [0xa1, 0xb2, 0x3c, 0x4d]];
        let pcap = pcap
            .iter()
            .any(|number| magic.iter().eq(number) || magic.iter().eq(number.iter().rev()));
        ensure!(pcap || pcapng, "is neither pcap nor pcapng; write one with tcpdump -w");
        let input: Input = Box::new(Cursor::new(magic).chain(input));
        let header = |err| anyhow!("file header: {}", explain(&err));
        let format = if pcapng {
            Format::PcapNg { reader: PcapNgReader::new(input).map_err(header)?, link_type: None }
        } else {
            let reader = PcapReader::new(input).map_err(header)?;
            let version = reader.header().version_major;
            ensure!(version == 2, "is pcap of version {version}; only version 2 is known");
            Format::Pcap(reader)
        };
        Ok(Self { format, count: 0 })
    }

    /// The link type of the packets read so far; for a pcapng file without packets, that of its
    /// first interface, if any.
    pub(super) fn link_type(&self) -> u32 {
        match &self.format {
            // The upper bits are flags and the length of a frame check sequence.
            Format::Pcap(reader) => u32::from(reader.header().datalink) & 0xffff,
            Format::PcapNg { reader, link_type } => {
                let first =
                    || reader.interfaces().first().map(|interface| interface.linktype.into());
                link_type.or_else(first).unwrap_or(RAW)
            }
        }
    }

    /// The header of a pcap file for the output: the byte order and time resolution of the input,
    /// or nanoseconds for pcapng.
    pub(super) fn header(&self, link_type: u32) -> PcapHeader {
        let (endianness, ts_resolution) = match &self.format {
            Format::Pcap(reader) => (reader.header().endianness, reader.header().ts_resolution),
            Format::PcapNg { .. } => (Endianness::Little, TsResolution::NanoSecond),
        };
        #[allow(clippy::cast_possible_truncation)] // 2^18
        let snaplen = MAX_CAPTURED as u32;
        PcapHeader {
            snaplen,
            datalink: DataLink::from(link_type),
            ts_resolution,
            endianness,
            ..PcapHeader::default()
        }
    }

    /// When a packet was captured, since 1970.
    pub(super) fn time(&self, record: &Record) -> Duration {
        let fraction = u64::from(record.fraction);
        let fraction = match &self.format {
            Format::Pcap(reader) if reader.header().ts_resolution == TsResolution::MicroSecond => {
                Duration::from_micros(fraction)
            }
            _ => Duration::from_nanos(fraction),
        };
        Duration::from_secs(record.seconds.into()) + fraction
    }

    /// Reads the next packet; false at the end of the file.
    pub(super) fn next(&mut self, record: &mut Record) -> anyhow::Result<bool> {
        self.count += 1;
        match &mut self.format {
            Format::Pcap(reader) => next_pcap(reader, record),
            Format::PcapNg { reader, link_type } => next_pcapng(reader, link_type, record),
        }
        .with_context(|| format!("packet {}", self.count))
    }
}

fn next_pcap(reader: &mut PcapReader<Input>, record: &mut Record) -> anyhow::Result<bool> {
    let Some(packet) = reader.next_raw_packet() else { return Ok(false) };
    let packet = packet.map_err(|err| anyhow!(explain(&err)))?;
    // A record of zeros would read as an empty packet of 1970, and /dev/zero has no end.
    ensure!(
        (packet.ts_sec, packet.ts_frac, packet.incl_len, packet.orig_len) != (0, 0, 0, 0),
        "zeros where a packet should be: the file was not written to its end, or is damaged"
    );
    (record.seconds, record.fraction) = (packet.ts_sec, packet.ts_frac);
    record.set(&packet.data, packet.orig_len)?;
    Ok(true)
}

fn next_pcapng(
    reader: &mut PcapNgReader<Input>,
    link_type: &mut Option<u32>,
    record: &mut Record,
) -> anyhow::Result<bool> {
    loop {
        let section = reader.section();
        let (endianness, version) = (section.endianness, section.major_version);
        // Each section has its own version.
        ensure!(version == 1, "is pcapng of version {version}; only version 1 is known");
        let Some(block) = reader.next_raw_block() else { return Ok(false) };
        let block = block.map_err(|err| anyhow!(explain(&err)))?;
        // Only packet blocks are parsed; others may be malformed.
        let (interface, units) = match block.type_ {
            ENHANCED_PACKET | SIMPLE_PACKET => match endianness {
                Endianness::Big => read_block::<BigEndian>(block, record)?,
                Endianness::Little => read_block::<LittleEndian>(block, record)?,
            },
            PACKET => bail!("has the obsolete Packet Block; convert the file with editcap -F pcap"),
            _ => continue,
        };
        let interface = usize::try_from(interface)?;
        let interface = reader
            .interfaces()
            .get(interface)
            .with_context(|| format!("interface {interface} is not described"))?;
        (record.seconds, record.fraction) = time(units, interface)?;
        if interface.snaplen > 0 && units.is_none() {
            // A Simple Packet Block does not have the captured length (pcapng §4.4).
            record.data.truncate(usize::try_from(interface.snaplen)?);
        }
        let number = u32::from(interface.linktype);
        ensure!(
            *link_type.get_or_insert(number) == number,
            "has link type {number} where earlier ones differ; split the file by interface (tshark \
             -Y frame.interface_id==0)"
        );
        return Ok(true);
    }
}

/// Reads a packet block: the interface, and the time in that interface's units if the block has
/// one.
fn read_block<B: ByteOrder>(
    block: RawBlock<'_>,
    record: &mut Record,
) -> anyhow::Result<(u32, Option<u64>)> {
    match block.try_into_block::<B>().map_err(|err| anyhow!(explain(&err)))? {
        Block::EnhancedPacket(packet) => {
            record.set(&packet.data, packet.original_len)?;
            // pcap-file reads the interface's units as nanoseconds.
            Ok((packet.interface_id, Some(u64::try_from(packet.timestamp.as_nanos())?)))
        }
        Block::SimplePacket(packet) => {
            // The data may end with padding.
            let len = packet.data.len().min(usize::try_from(packet.original_len)?);
            record.set(&packet.data[..len], packet.original_len)?;
            Ok((0, None))
        }
        _ => bail!("not a packet"),
    }
}

/// Converts a time from an interface's units to seconds and nanoseconds (pcapng §4.2, if_tsresol
/// and if_tsoffset).
fn time(
    units: Option<u64>,
    interface: &InterfaceDescriptionBlock<'_>,
) -> anyhow::Result<(u32, u32)> {
    let (mut resolution, mut offset) = (6, 0);
    for option in &interface.options {
        match option {
            InterfaceDescriptionOption::IfTsResol(value) => resolution = *value,
            // The value is signed; pcap-file's type is not.
            InterfaceDescriptionOption::IfTsOffset(value) => {
                offset = i64::from_ne_bytes(value.to_ne_bytes());
            }
            _ => {}
        }
    }
    let Some(units) = units else { return Ok((0, 0)) };
    let units = u128::from(units);
    let base: u128 = if resolution & 0x80 == 0 { 10 } else { 2 };
    // With units below 2^-64 s, every time is within the first second.
    let Some(per_second) = base.checked_pow(u32::from(resolution & 0x7f)).filter(|n| *n <= 1 << 64)
    else {
        return Ok((0, 0));
    };
    let seconds = i128::try_from(units / per_second)? + i128::from(offset);
    let seconds = u32::try_from(seconds).ok().context(
        "its timestamp is before 1970 or after 2106, which pcap cannot hold; shift the capture \
         with editcap -t",
    )?;
    let nanos = u32::try_from(units % per_second * 1_000_000_000 / per_second)?;
    Ok((seconds, nanos))
}

/// What is wrong with the file, as text.
fn explain(err: &PcapError) -> String {
    match err {
        PcapError::IncompleteBuffer => "the file ends in the middle of it".into(),
        PcapError::IoError(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
            "the file ends in the middle of it, or it claims more bytes than there are; copy or \
             capture the file again"
                .into()
        }
        PcapError::IoError(err) => format!("cannot be read: {err}"),
        other => format!("the file is damaged: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads all of it, whether or not it is a capture.
    fn read(bytes: &[u8]) -> anyhow::Result<usize> {
        let mut capture = Capture::new(Box::new(Cursor::new(bytes.to_vec())))?;
        let mut record = Record::default();
        let mut count = 0;
        while capture.next(&mut record)? {
            capture.link_type();
            count += 1;
        }
        Ok(count)
    }

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 12).unwrap().to_be_bytes();
        [&kind.to_be_bytes()[..], &len, body, &len].concat()
    }

    /// A big-endian section with blocks of every known type, among them a name block that does not
    /// parse.
    fn pcapng() -> Vec<u8> {
        let section = [&0x1a2b_3c4d_u32.to_be_bytes()[..], &[0, 1, 0, 0], &[0xff; 8]].concat();
        let interface = [
            0, 101, 0, 0, 0, 0, 0, 8, 0, 9, 0, 1, 6, 0, 0, 0, 0, 14, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1,
            0, 0, 0, 0,
        ];
        let enhanced =
            [[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 4], [0x45; 20]].concat();
        [
            block(0x0a0d_0d0a, &section),
            block(1, &interface),
            block(4, &[0, 1, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0][..8]),
            block(6, &enhanced[..24]),
            block(5, &[0; 12]),
            block(3, &[0, 0, 0, 3, 1, 2, 3, 0]),
            block(0xbad, &[]),
        ]
        .concat()
    }

    #[test]
    fn every_block_of_pcapng_passes() {
        assert_eq!(read(&pcapng()).unwrap(), 2);
    }

    #[test]
    fn no_byte_makes_the_readers_panic() {
        let mut pcap =
            [&0xa1b2_c3d4_u32.to_be_bytes()[..], &[0, 2, 0, 4], &[0; 15], &[101]].concat();
        pcap.extend(
            [[0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2].as_slice(), &[0x45, 0]].concat(),
        );
        for whole in [pcap, pcapng()] {
            let packets = read(&whole).unwrap();
            assert!(packets > 0);
            for at in 0..whole.len() {
                for value in [
                    0,
                    1,
                    3,
                    4,
                    0x7f,
                    0x80,
                    0xff,
                    whole[at].wrapping_add(1),
                    whole[at].wrapping_sub(1),
                ] {
                    let mut bytes = whole.clone();
                    bytes[at] = value;
                    let _ = read(&bytes);
                    let _ = read(&bytes[..at]);
                }
            }
        }
    }
}
