// SPDX-License-Identifier: Apache-2.0

//! The machine: CPU time, context switches, and CPU affinity.

use std::fs;

use anyhow::{Context, Result};
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::{sysconf, Pid, SysconfVar};

/// Seconds of work of all CPUs since boot, which includes network processing in interrupts.
pub(crate) fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    // user nice system idle iowait irq softirq (proc_stat(5))
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum::<f64>();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(busy / f64::from(u32::try_from(per_second)?))
}

/// Number of context switches to the threads of these processes.
pub(crate) fn switches(pids: &[i32]) -> Result<u32> {
    let mut count = 0;
    for tid in pids.iter().flat_map(|pid| threads(*pid)) {
        // A thread that has ended counts no more.
        let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
        let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        count += lines.flat_map(|(_, n)| n.trim().parse::<u32>()).sum::<u32>();
    }
    Ok(count)
}

/// Pins these processes to the first CPU until dropped.
pub(crate) struct Pinned(Vec<i32>);

impl Pinned {
    pub(crate) fn new(pids: Vec<i32>) -> Result<Self> {
        let pinned = Self(pids);
        let mut one = CpuSet::new();
        one.set(0)?;
        pinned.allow(&one)?;
        Ok(pinned)
    }

    fn allow(&self, cpus: &CpuSet) -> Result<()> {
        for tid in self.0.iter().flat_map(|pid| threads(*pid)) {
            sched_setaffinity(Pid::from_raw(tid), cpus).with_context(|| format!("pin {tid}"))?;
        }
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut all = CpuSet::new();
        for cpu in 0..CpuSet::count() {
            let _ = all.set(cpu);
        }
        let _ = self.allow(&all);
    }
}

fn threads(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// CPUs and kernel.
pub(crate) fn describe() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    format!("{cpus} CPUs ({model}), Linux {}", kernel.trim())
}
