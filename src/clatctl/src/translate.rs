// SPDX-License-Identifier: Apache-2.0

//! `clatctl translate`: SIIT (RFC 7915) on capture files.

mod answers;
mod capture;
mod link;
mod report;
mod sink;

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgGroup, ValueEnum};
use clat_sys::{like, whole};
use clat_xlat::{
    Addresses, Config, Eam, HopPolicy, Local, Packet, Pool, Prefix, Translator, UdpZero, Verdict,
    HEADROOM, TAILROOM,
};
use pcap_file::pcap::PcapWriter;
use pcap_file::PcapError;

use crate::{complain, Failure, FAILED};
use answers::{Answers, IcmpErrors};
use capture::{Capture, Record, MAX_CAPTURED};
use link::{Family, Link};
use report::{Outcome, Report, Skip};
use sink::Sink;

const EXAMPLES: &str = "\
Examples:
  A CLAT's two sides, with a line for each packet:
    clatctl translate --local4 192.0.0.4 --local6 2001:db8::4 --prefix 64:ff9b::/96 \\
      --explain in.pcap out.pcap
  A stateless translator with an address table, as a router:
    clatctl translate --eam 192.0.2.0/24=2001:db8::/120 --prefix 64:ff9b::/96 \\
      --ttl decrement in.pcap out.pcap
  In a pipe:
    tcpdump -i any -w - -c 10 | clatctl translate --prefix 2001:db8:100::/40 - - | tcpdump -r -

IN is pcap or pcapng with packets of Ethernet, raw IP, loopback, or Linux's \"any\"; OUT is pcap
with the same link type and order.

Exit status:
  0  the file was processed, whatever became of its packets
  1  it could not be, and OUT is as it was before; or the capture had cut packets short, which OUT
     then lacks
  2  wrong usage";

/// At least one of these is needed to translate anything.
fn mapping() -> ArgGroup {
    ArgGroup::new("mapping").args(["prefix", "eam", "local4"]).required(true).multiple(true)
}

/// An IPv4 MTU: at least 68 (RFC 791 §3.2).
fn mtu4() -> impl clap::builder::TypedValueParser<Value = u32> {
    whole(68..=u32::MAX)
}

/// An IPv6 MTU: at least 1280 (RFC 8200 §5).
fn mtu6() -> impl clap::builder::TypedValueParser<Value = u32> {
    whole(1280..=u32::MAX)
}

/// Arguments of `clatctl translate`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = mapping())]
pub(crate) struct Args {
    /// The CLAT's own IPv4 address; other IPv4 sources are then foreign
    #[arg(long, value_name = "V4", requires = "local6")]
    #[arg(value_parser = like::<Ipv4Addr>("192.0.0.4"))]
    local4: Option<Ipv4Addr>,
    /// The CLAT's own IPv6 address, to which --local4 is translated
    #[arg(long, value_name = "V6", requires = "local4")]
    #[arg(value_parser = like::<Ipv6Addr>("2001:db8::4"))]
    local6: Option<Ipv6Addr>,
    /// RFC 6052 prefix of 32, 40, 48, 56, 64 or 96 bits; the first is used towards IPv6, all of
    /// them from IPv6
    #[arg(long, value_name = "PREFIX/LEN")]
    prefix: Vec<Prefix>,
    /// Explicit mapping (RFC 7757); the longest match wins, and mappings win over prefixes
    #[arg(long, value_name = "V4[/LEN]=V6[/LEN]")]
    eam: Vec<Eam>,
    /// MTU of the IPv4 link
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = mtu4())]
    mtu4: u32,
    /// MTU of the IPv6 link
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = mtu6())]
    mtu6: u32,
    /// Largest IPv6 packet made of an IPv4 packet without DF; larger ones are fragmented
    #[arg(long, value_name = "BYTES", default_value_t = 1280, value_parser = mtu6())]
    lowest_ipv6_mtu: u32,
    /// What to do with UDP without a checksum, towards IPv6
    #[arg(long, value_enum, default_value_t = UdpZeroArg::Compute)]
    udp_zero: UdpZeroArg,
    /// Copy TTL and hop limit as a CLAT on a host does, or decrement them as a router does
    #[arg(long, value_enum, default_value_t = TtlArg::Copy)]
    ttl: TtlArg,
    /// TOS and traffic class of translated packets [default: copied]
    #[arg(long, value_name = "BYTE", value_parser = whole(0..=u8::MAX))]
    traffic_class: Option<u8>,
    /// Which of the translator's own ICMP errors are written
    #[arg(long, value_enum, default_value_t = IcmpErrors::Sent)]
    icmp_errors: IcmpErrors,
    /// Source of ICMP errors to IPv4, also of those from IPv6 routers without an IPv4 form; with a
    /// prefix, each router gets one of its addresses [default: 192.0.0.8]
    #[arg(long, value_name = "V4[/LEN]")]
    router4: Option<Pool>,
    /// Source of ICMPv6 errors [default: --local6, else 192.0.0.8 in the first prefix, else in
    /// 64:ff9b::/96]
    #[arg(long, value_name = "V6", value_parser = router6)]
    router6: Option<Ipv6Addr>,
    /// Refuse non-global IPv4 addresses inside 64:ff9b::/96 (RFC 6052 §3.1)
    #[arg(long)]
    strict_wkp: bool,
    /// Print a line for each packet: what was done, and which RFC section requires it
    #[arg(long)]
    explain: bool,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    /// pcap or pcapng file to read, - for standard input
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// pcap file to write, - for standard output; may be the same as IN
    #[arg(value_name = "OUT.pcap")]
    output: PathBuf,
}

/// Context of an error in writing the report.
const REPORT_FAILED: &str = "cannot write what happened";

/// The IPv4 dummy address (RFC 7600 §4.8).
const DUMMY4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

fn router6(text: &str) -> Result<Ipv6Addr, String> {
    let address: Ipv6Addr = text.parse().map_err(|_| "not an IPv6 address".to_owned())?;
    if address.is_multicast() || address.is_unspecified() || address.is_loopback() {
        return Err("no router has such an address; take a unicast address".into());
    }
    Ok(address)
}

#[derive(Clone, Copy, ValueEnum)]
enum UdpZeroArg {
    Compute,
    Drop,
    Forward,
}

#[derive(Clone, Copy, ValueEnum)]
enum TtlArg {
    Copy,
    Decrement,
}

impl Args {
    fn addresses(&self) -> Addresses {
        Addresses {
            // clap requires both or neither.
            local: self.local4.zip(self.local6).map(|(v4, v6)| Local { v4, v6 }),
            eams: self.eam.clone(),
            prefixes: self.prefix.clone(),
            strict_wkp: self.strict_wkp,
        }
    }

    fn config(&self) -> Config {
        let prefix = self.prefix.first().copied().unwrap_or(Prefix::WELL_KNOWN);
        Config {
            mtu4: self.mtu4,
            mtu6: self.mtu6,
            lowest_ipv6_mtu: self.lowest_ipv6_mtu,
            udp_zero: match self.udp_zero {
                UdpZeroArg::Compute => UdpZero::Compute,
                UdpZeroArg::Drop => UdpZero::Drop,
                UdpZeroArg::Forward => UdpZero::Forward,
            },
            hop: match self.ttl {
                TtlArg::Copy => HopPolicy::Copy,
                TtlArg::Decrement => HopPolicy::Decrement,
            },
            class: self.traffic_class,
            router4: self.router4.unwrap_or(DUMMY4.into()),
            router6: self.router6.or(self.local6).unwrap_or_else(|| prefix.embed(DUMMY4)),
        }
    }
}

/// Runs `clatctl translate`.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    // The same input gives the same output, so identifications count from 1.
    let translator = Translator::new(args.config(), args.addresses(), 1).map_err(Failure::usage)?;
    // Standard output is for packets or for the report, never both.
    let mut words: Box<dyn Write> = if sink::is_stdio(&args.output) {
        Box::new(io::stderr())
    } else {
        Box::new(io::stdout().lock())
    };
    let mut report = Report::new(args.explain, args.json, &mut words);
    translate(args, translator, &mut report)?;
    report.finish(&args.input, &args.output).context(REPORT_FAILED)?;
    let cut = report.skipped(Skip::CutShort);
    if cut == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    complain(&format!(
        "{}: {cut} of {} packets were cut short by the capture and are missing in {}; capture \
         whole packets (tcpdump -s 0)",
        args.input.display(),
        report.packets(),
        args.output.display()
    ));
    Ok(ExitCode::from(FAILED))
}

fn translate(args: &Args, translator: Translator, report: &mut Report<'_>) -> anyhow::Result<()> {
    let input = || args.input.display().to_string();
    let capture = Capture::open(&args.input).with_context(input)?;
    let mut sink = Sink::create(&args.output)?;
    convert(args, translator, capture, sink.writer(), report)?;
    sink.commit()
}

fn convert(
    args: &Args,
    mut translator: Translator,
    mut capture: Capture,
    sink: impl Write,
    report: &mut Report<'_>,
) -> anyhow::Result<()> {
    let input = || args.input.display().to_string();
    let mut buffer = vec![0; HEADROOM + MAX_CAPTURED + TAILROOM];
    let mut record = Record::default();
    let mut lengths = Vec::new();

    // The link type of a pcapng file is known after its first packet.
    let mut more = capture.next(&mut record).with_context(input)?;
    let link = Link::new(capture.link_type()).with_context(input)?;
    let output = || args.output.display().to_string();
    let mut writer = PcapWriter::with_header(sink, capture.header(link.output_type()))
        .map_err(unwritten)
        .with_context(output)?;
    let mut answers = Answers::new(args.icmp_errors);
    while more {
        let (frame, header) = match record.whole().and_then(|f| Ok((f, link.split(f)?))) {
            Ok(split) => split,
            Err(skip) => {
                report.packet(&[], &Outcome::Skipped(skip)).context(REPORT_FAILED)?;
                more = capture.next(&mut record).with_context(input)?;
                continue;
            }
        };
        let ip = &frame[header.len..];
        let range = HEADROOM..HEADROOM + ip.len();
        buffer[range.clone()].copy_from_slice(ip);
        let mut packet = Packet::new(&mut buffer, range)
            .ok()
            .context("no room for the packet: a bug, please report it")?;
        let verdict = match header.family {
            Some(Family::V4) => translator.to_ipv6(&mut packet),
            Some(Family::V6) => translator.to_ipv4(&mut packet),
            None => translator.translate(&mut packet),
        };
        lengths.clear();
        let outcome = match verdict {
            Verdict::Forward { rule, mut frames } => {
                while let Some(piece) = frames.next() {
                    lengths.push(piece.bytes.len());
                    let piece = link.forward(frame, header, piece.bytes);
                    writer
                        .write_raw_packet(&record.like(&piece)?)
                        .map_err(unwritten)
                        .with_context(output)?;
                }
                Outcome::Forwarded(rule, &lengths)
            }
            Verdict::Reply { reason, error }
                if !link.may_answer(frame) || !answers.may_send(error, capture.time(&record)) =>
            {
                Outcome::Unanswered(reason)
            }
            Verdict::Reply { reason, error } => {
                let answer = link.reply(frame, header, error);
                writer
                    .write_raw_packet(&record.like(&answer)?)
                    .map_err(unwritten)
                    .with_context(output)?;
                Outcome::Replied(reason, error.len())
            }
            Verdict::Drop(reason) => Outcome::Dropped(reason),
        };
        report.packet(ip, &outcome).context(REPORT_FAILED)?;
        more = capture.next(&mut record).with_context(input)?;
    }
    Ok(())
}

/// Translates a capture in memory as `clatctl translate` does with these arguments, with a line for
/// each packet, and returns the number of packets. For fuzz targets.
///
/// # Errors
/// Why the capture or the arguments are invalid.
#[cfg(fuzzing)]
pub fn translate_bytes(arguments: &[&str], bytes: &[u8]) -> anyhow::Result<u64> {
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let line = ["translate"].iter().chain(arguments).chain(&["-", "-"]);
    let Line { args } = Line::try_parse_from(line)?;
    let mut words = io::sink();
    let mut report = Report::new(args.explain, args.json, &mut words);
    convert(
        &args,
        Translator::new(args.config(), args.addresses(), 1)?,
        Capture::new(Box::new(io::Cursor::new(bytes.to_vec())))?,
        io::sink(),
        &mut report,
    )?;
    Ok(report.packets())
}

/// Why a packet could not be written. pcap-file reports all I/O errors as read errors.
fn unwritten(err: PcapError) -> anyhow::Error {
    match err {
        PcapError::IoError(err) => err.into(),
        other => other.into(),
    }
}
