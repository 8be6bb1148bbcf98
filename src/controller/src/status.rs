// SPDX-License-Identifier: Apache-2.0

//! The controller's status as JSON: what `clatctl status --json` and `dumpsys clatd_controller
//! --json` print.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::binder_adapter::{ClatStatus, ControllerStatus, OffloadCounters};

/// What a controller is and what it runs; the fields are those of `ControllerStatus.aidl`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the names say it, or the AIDL does
pub struct Status {
    pub pid: i32,
    pub ebpf_mode: String,
    pub standalone: bool,
    pub clats: Vec<Clat>,
    /// The uplinks, if CLATs are managed automatically.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uplinks: Vec<Uplink>,
}

/// An uplink and its network.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the names say it
pub struct Uplink {
    pub iface: String,
    pub nat64_prefix: Option<String>,
    /// The source of the prefix.
    pub source: Option<String>,
    /// Whether a CLAT is wanted there, and why not.
    pub verdict: String,
}

/// The present uplinks.
#[derive(Debug, Default)]
pub struct Uplinks(Mutex<Vec<Uplink>>);

impl Uplinks {
    /// Replaces them.
    pub fn set(&self, uplinks: Vec<Uplink>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = uplinks;
    }

    /// One line of JSON: an array.
    #[must_use]
    pub fn json(&self) -> String {
        let uplinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_string(&*uplinks).unwrap_or_default()
    }
}

impl Status {
    /// One line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        // Fails only for maps whose keys are no text; there are none.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// One running CLAT; the fields are those of `ClatStatus.aidl`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the names say it, or the AIDL does
pub struct Clat {
    pub iface: String,
    pub if_index: i32,
    pub v4iface: String,
    #[serde(rename = "v4ifIndex")]
    pub v4if_index: i32,
    pub nat64_prefix: String,
    pub v4: String,
    pub v6: String,
    pub fwmark: u32,
    pub pid: i32,
    pub restarts: i32,
    pub uptime_millis: i64,
    pub tx_packets: i64,
    pub tx_bytes: i64,
    pub rx_packets: i64,
    pub rx_bytes: i64,
    pub offloaded: bool,
    pub egress: Option<Offload>,
    pub ingress: Option<Offload>,
    pub working: String,
    pub hindrances: Vec<String>,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Computed by clients that ask repeatedly; the controller keeps no rates.
    pub rates: Option<Rates>,
}

impl Clat {
    /// Packets and bytes sent, by BPF programs and by clatd.
    #[must_use]
    pub fn sent(&self) -> (i64, i64) {
        by_both(self.tx_packets, self.tx_bytes, self.egress.as_ref())
    }

    /// Packets and bytes received, likewise.
    #[must_use]
    pub fn received(&self) -> (i64, i64) {
        by_both(self.rx_packets, self.rx_bytes, self.ingress.as_ref())
    }
}

fn by_both(packets: i64, bytes: i64, offload: Option<&Offload>) -> (i64, i64) {
    let more = offload.map_or((0, 0), |offload| (offload.packets, offload.bytes));
    (packets.saturating_add(more.0), bytes.saturating_add(more.1))
}

/// The counters of a BPF program; the fields are those of `OffloadCounters.aidl`, and `passed` by
/// reason.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the names say it, or the AIDL does
pub struct Offload {
    pub packets: i64,
    pub bytes: i64,
    pub super_packets: i64,
    pub neighbour: i64,
    pub lost: i64,
    pub passed: BTreeMap<String, i64>,
}

/// Rates per second since the previous status, by BPF programs and by clatd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the names say it, or the AIDL does
pub struct Rates {
    pub tx_packets_per_second: f64,
    pub tx_bytes_per_second: f64,
    pub rx_packets_per_second: f64,
    pub rx_bytes_per_second: f64,
}

impl From<ControllerStatus> for Status {
    fn from(status: ControllerStatus) -> Self {
        Self {
            pid: status.pid,
            ebpf_mode: status.ebpfMode,
            standalone: status.standalone,
            clats: status.clats.into_iter().map(Clat::from).collect(),
            uplinks: Vec::new(),
        }
    }
}

impl From<OffloadCounters> for Offload {
    fn from(counters: OffloadCounters) -> Self {
        Self {
            packets: counters.packets,
            bytes: counters.bytes,
            super_packets: counters.superPackets,
            neighbour: counters.neighbour,
            lost: counters.lost,
            passed: counters
                .passed
                .into_iter()
                .map(|passed| (passed.reason, passed.count))
                .collect(),
        }
    }
}

impl From<ClatStatus> for Clat {
    fn from(clat: ClatStatus) -> Self {
        Self {
            iface: clat.iface,
            if_index: clat.ifIndex,
            v4iface: clat.v4iface,
            v4if_index: clat.v4ifIndex,
            nat64_prefix: clat.nat64Prefix,
            v4: clat.v4,
            v6: clat.v6,
            // AIDL has no unsigned integers.
            fwmark: u32::from_ne_bytes(clat.fwmark.to_ne_bytes()),
            pid: clat.pid,
            restarts: clat.restarts,
            uptime_millis: clat.uptimeMillis,
            tx_packets: clat.txPackets,
            tx_bytes: clat.txBytes,
            rx_packets: clat.rxPackets,
            rx_bytes: clat.rxBytes,
            offloaded: clat.offloaded,
            egress: clat.egress.map(Offload::from),
            ingress: clat.ingress.map(Offload::from),
            // From a controller without probes.
            working: if clat.working.is_empty() { "unknown".into() } else { clat.working },
            hindrances: clat.hindrances,
            path: match clat.path {
                path if !path.is_empty() => path,
                // From a controller that has only these.
                _ if clat.offloaded => "device".into(),
                _ => "daemon".into(),
            },
            rates: None,
        }
    }
}
