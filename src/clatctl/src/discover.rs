// SPDX-License-Identifier: Apache-2.0

//! `clatctl discover`: the NAT64 prefix of an uplink's network, its source, and whether a CLAT is
//! needed. Asks the network itself, without a controller.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clat_controller::auto::{discover, without_ipv4, Found, Pattern, Report, Verdict};
use clat_controller::host::ProbeTarget;
use clat_sys::whole;

use crate::{Failure, FAILED};

/// Arguments of `clatctl discover`.
#[derive(clap::Args)]
#[command(after_help = "Exit status: 0 if a prefix was found, else 1. Only root receives router \
                  advertisements.")]
pub(crate) struct Args {
    /// The interface; * and ? are wildcards [default: all that are uplinks]
    iface: Option<Pattern>,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = whole(1..=3600_u16))]
    wait: u16,
    /// Print JSON, one object for each uplink
    #[arg(long)]
    json: bool,
}

/// Arguments of `clatctl ready`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 if it would, after printing the NAT64 prefix; else 1. Needs root."
)]
pub(crate) struct Ready {
    /// The interface
    iface: Pattern,
    /// A host of the IPv4 internet that has to answer through the NAT64: by ICMP echo, or by TCP
    /// where a port is given
    #[arg(long, value_name = "ADDR[:PORT]")]
    probe: Option<ProbeTarget>,
    /// Seconds to wait for routers and resolvers
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    #[arg(value_parser = whole(1..=3600_u16))]
    wait: u16,
}

/// Runs `clatctl ready`.
pub(crate) fn ready(args: &Ready, out: &mut impl Write) -> Result<(), Failure> {
    let fail = |message: String| Failure { code: FAILED, message };
    let report = without_ipv4(&args.iface, Duration::from_secs(args.wait.into()))
        .map_err(|e| fail(format!("cannot look at the interfaces: {e}")))?
        .ok_or_else(|| {
            fail("there is no such interface, or it can be no uplink; see ip link".to_owned())
        })?;
    let iface = &report.iface;
    let Verdict::Run(Found { prefix, .. }) = report.verdict else {
        return Err(fail(format!("{iface}: not ready: {}", report.verdict)));
    };
    if let Some(host) = args.probe {
        let answers = report.answers(&prefix, host);
        if !answers.map_err(|e| fail(format!("{iface}: cannot ask through {prefix}: {e}")))? {
            return Err(fail(format!("{iface}: not ready: no answer through {prefix}")));
        }
    }
    Ok(writeln!(out, "{prefix}")?)
}

/// Runs `clatctl discover`.
pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result<ExitCode, Failure> {
    let patience = Duration::from_secs(args.wait.into());
    let reports = discover(args.iface.as_ref(), patience).map_err(|e| Failure {
        code: FAILED,
        message: format!("cannot look at the interfaces: {e}"),
    })?;
    if reports.is_empty() {
        let message = match &args.iface {
            Some(_) => "there is no such interface, or it can be no uplink; see ip link".to_owned(),
            None => "no interface is an uplink; name one: clatctl discover IFACE".to_owned(),
        };
        return Err(Failure { code: FAILED, message });
    }
    for report in &reports {
        if args.json {
            writeln!(out, "{}", json(report))?;
        } else {
            text(report, out)?;
        }
    }
    out.flush()?;
    let found = reports.iter().any(|report| report.found.is_some());
    Ok(ExitCode::from(if found { 0 } else { FAILED }))
}

fn text(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { iface, host, found, verdict, hears_routers } = report;
    let row = |out: &mut dyn Write, name: &str, value: &str| writeln!(out, "  {name:13}{value}");
    writeln!(out, "{iface}: {verdict}")?;
    match found {
        Some(found) => {
            row(out, "NAT64 prefix", &found.prefix.to_string())?;
            row(out, "from", &found.source.to_string())?;
        }
        None => row(out, "NAT64 prefix", "none")?,
    }
    let yes_or_no = |is: bool, yes: &'static str| if is { yes } else { "no" };
    row(out, "IPv6", yes_or_no(host.has_ipv6, "an address and a default route"))?;
    row(out, "native IPv4", yes_or_no(host.has_ipv4, "an address and a default route"))?;
    row(out, "DHCPv4", yes_or_no(host.has_dhcpv4, "a client is at work"))?;
    let resolvers: Vec<_> = host.resolvers.iter().map(|one| one.ip().to_string()).collect();
    for (at, resolver) in resolvers.iter().enumerate() {
        row(out, if at == 0 { "resolvers" } else { "" }, resolver)?;
    }
    if !hears_routers {
        row(out, "routers", "not heard; that takes root")?;
    }
    Ok(())
}

fn json(report: &Report) -> serde_json::Value {
    let Report { iface, host, found, verdict, hears_routers } = report;
    serde_json::json!({
        "iface": iface.as_str(),
        "nat64Prefix": found.map(|found| found.prefix.to_string()),
        "source": found.map(|found| found.source.to_string()),
        "verdict": verdict.to_string(),
        "hasIpv6": host.has_ipv6,
        "hasSingleAddress": host.has_single_address,
        "hasIpv4": host.has_ipv4,
        "hasDhcpv4": host.has_dhcpv4,
        "hasOtherClat": host.has_other_clat,
        "resolvers": host.resolvers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "hearsRouters": hears_routers,
    })
}
