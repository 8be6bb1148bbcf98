// SPDX-License-Identifier: Apache-2.0

//! The state of a platd for `platd status`: JSON on a Unix socket to each client.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::carrier::Carrier;
use crate::flow::{FlowStatus, Stats};

/// Most flows listed.
const LISTED: usize = 1000;

/// The state.
#[derive(Debug, Deserialize, Serialize)]
pub struct Status {
    /// The advertised prefix.
    pub prefix: String,
    /// The NAT64 prefix.
    pub prefix64: String,
    /// MTU of the link.
    pub mtu: u16,
    /// The guest's address, once known, and until its flows have ended.
    pub guest: Option<String>,
    /// Whether a guest is connected.
    pub connected: bool,
    /// Flows that are open.
    pub flows_open: usize,
    /// Bytes of memory for their data.
    pub bytes_held: usize,
    /// Frames sent to the guest.
    pub frames_down: u64,
    /// Frames to the guest that were lost: by --loss, or because it does not read.
    pub frames_lost: u64,
    /// Counters since the start.
    pub stats: Stats,
    /// The first flows.
    pub flows: Vec<FlowStatus>,
}

impl Status {
    /// The present state of a carrier.
    #[must_use]
    pub fn of(carrier: &Carrier) -> Self {
        let settings = carrier.network().settings();
        let (flows_open, bytes_held) = carrier.engine().load();
        let (frames_down, frames_lost) = carrier.frames_down();
        Self {
            prefix: format!("{}/64", settings.prefix),
            prefix64: settings.prefix64.to_string(),
            mtu: settings.mtu,
            guest: carrier.guest().map(|(address, mac)| format!("{address} ({mac})")),
            connected: carrier.link().has_guest(),
            flows_open,
            bytes_held,
            frames_down,
            frames_lost,
            stats: carrier.engine().stats().clone(),
            flows: carrier.engine().flows(LISTED),
        }
    }

    /// Writes the state to a client.
    pub fn tell(&self, mut stream: &UnixStream) {
        // A socket buffers more than a status, whose length is bounded.
        let _ = stream.set_nonblocking(true);
        if let Ok(json) = serde_json::to_vec(self) {
            let _ = stream.write_all(&json);
        }
    }

    /// As text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let stats = &self.stats;
        let guest = match (&self.guest, self.connected) {
            (Some(guest), true) => guest.clone(),
            (Some(guest), false) => format!("{guest} is gone; its flows are kept for ten seconds"),
            (None, true) => "not heard of yet".to_owned(),
            (None, false) => "none".to_owned(),
        };
        let _ =
            writeln!(text, "network  {}, NAT64 {}, MTU {}", self.prefix, self.prefix64, self.mtu);
        let _ = writeln!(text, "guest    {guest}");
        let _ = writeln!(
            text,
            "flows    {} open, {} KiB held; since the start {} TCP, {} UDP, {} echo, {} evicted",
            self.flows_open,
            self.bytes_held / 1024,
            stats.tcp,
            stats.udp,
            stats.echo,
            stats.evicted
        );
        let _ = writeln!(
            text,
            "up       {} packets, {} bytes of data, {} fragments, {} UDP GSO sends, {} batches",
            stats.packets_up, stats.bytes_up, stats.fragments, stats.gso_up, stats.batches_up
        );
        let _ = writeln!(
            text,
            "down     {} frames, {} lost, {} bytes of data, {} UDP GRO reads",
            self.frames_down, self.frames_lost, stats.bytes_down, stats.gro_down
        );
        let drops = serde_json::to_value(&stats.drops).unwrap_or_default();
        let drops: Vec<String> = drops
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, n)| n.as_u64() != Some(0))
            .map(|(why, n)| format!("{why} {n}"))
            .collect();
        let drops = if drops.is_empty() { "none".to_owned() } else { drops.join(", ") };
        let _ = writeln!(text, "drops    {drops}");
        for flow in &self.flows {
            let _ = writeln!(text, "  {} {}", flow.flow, flow.state);
        }
        text
    }
}

/// Asks a platd for its state.
///
/// # Errors
/// If there is none, or it does not answer.
pub fn ask(socket: &Path) -> anyhow::Result<Status> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!("cannot connect to {}; is a platd running with --status?", socket.display())
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut json = String::new();
    stream.read_to_string(&mut json).context("platd does not answer")?;
    serde_json::from_str(&json).context("platd's answer makes no sense")
}
