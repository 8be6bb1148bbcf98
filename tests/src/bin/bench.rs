//! Side by side in one run: native IPv6, our CLAT, and tayga as a CLAT, over the lab's veths with default offloads.
//! Rounds are interleaved, so that what else the machine does hits all alike.
//!
//! `cargo run --release -p clat_tests --bin bench [ROUNDS]` prints tables and writes them to `docs/benchmarks.md`, along
//! with those of `cargo bench -p clat_xlat`. Needs root, iperf3 and tayga; the programs as built by
//! `cargo build --release`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::wire::uninterrupted;
use clat_tests::{can_run, Clat, Daemon, Lab, Offloads, PREFIX, SERVER4, SERVER6};
use nix::sys::socket::{setsockopt, sockopt};

const BEGIN: &str = "<!-- made by: cargo run --release -p clat_tests --bin bench -->\n";
const END: &str = "<!-- end -->\n";
const SUBJECTS: [&str; 3] = ["native IPv6", "clat", "tayga"];
/// Of packets sent, that may be lost for a rate to count.
const LOSS: f64 = 0.001;

/// One of the three, up and running.
struct Subject<'l> {
    lab: &'l Lab,
    server: IpAddr,
    _iperf: Daemon,
    _clat: Option<Clat<'l>>,
}

impl<'l> Subject<'l> {
    fn new(lab: &'l Lab, name: &str) -> Result<Self> {
        let clat = match name {
            "clat" => Some(Clat::ours(lab, PREFIX)?),
            "tayga" => Some(Clat::tayga(lab, PREFIX)?),
            _ => None,
        };
        let server = if clat.is_some() { IpAddr::V4(SERVER4) } else { IpAddr::V6(SERVER6) };
        let log = lab.dir().join("iperf3.log");
        let mut iperf = lab.internet.spawn(&["iperf3", "-s", "--forceflush"], &log)?;
        iperf.wait_for("listening")?;
        Ok(Self { lab, server, _iperf: iperf, _clat: clat })
    }

    /// Gbit/s that arrive.
    fn tcp(&self, more: &str) -> Result<f64> {
        let line = format!("iperf3 -J -t 3 -O 1 -C cubic -c {} {more}", self.server);
        let json: serde_json::Value = serde_json::from_str(&self.lab.phone.run(&line)?)?;
        let bits = json["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.with_context(|| format!("iperf3 said {json}"))? / 1e9)
    }

    /// Two sockets that talk to one another: the phone's, the server's.
    fn pair(&self) -> Result<(UdpSocket, UdpSocket)> {
        let server = Lab::udp(&self.lab.internet, (SERVER6, 5000))?;
        let any: IpAddr = match self.server {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let client = Lab::udp(&self.lab.phone, (any, 0))?;
        client.connect((self.server, 5000))?;
        client.send(b"hello")?;
        let (_, peer) = uninterrupted(|| server.recv_from(&mut [0; 16]))?;
        server.connect(peer)?;
        for socket in [&client, &server] {
            setsockopt(socket, sockopt::RcvBufForce, &(64 << 20))?;
        }
        Ok((client, server))
    }

    /// Thousands of datagrams a second at less than [`LOSS`], by bisection.
    fn udp(&self, size: usize, up: bool) -> Result<f64> {
        let (client, server) = self.pair()?;
        let (from, to) = if up { (&client, &server) } else { (&server, &client) };
        let (mut good, mut bad) = (0.0, 1_000_000.0);
        for _ in 0..9 {
            let rate = (good + bad) / 2.0;
            let (sent, received) = trial(from, to, size, rate)?;
            if received >= sent * (1.0 - LOSS) {
                good = rate;
                // The sender itself went no faster.
                if sent / TRIAL.as_secs_f64() < rate * 0.97 {
                    return Ok(sent / TRIAL.as_secs_f64() / 1e3);
                }
            } else {
                bad = rate;
            }
        }
        Ok(good / 1e3)
    }

    /// Median and 99th percentile of a round trip, µs.
    fn round_trip(&self) -> Result<(f64, f64)> {
        let (client, server) = self.pair()?;
        const COUNT: usize = 5000;
        let echo = thread::spawn(move || -> std::io::Result<()> {
            let mut buf = [0; 64];
            for _ in 0..COUNT {
                let n = uninterrupted(|| server.recv(&mut buf))?;
                server.send(&buf[..n])?;
            }
            Ok(())
        });
        let mut times = Vec::with_capacity(COUNT);
        for _ in 0..COUNT {
            let begin = Instant::now();
            client.send(&[0; 64])?;
            uninterrupted(|| client.recv(&mut [0; 64]))?;
            times.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        echo.join().map_err(|_| anyhow::anyhow!("the echo thread"))??;
        times.sort_by(f64::total_cmp);
        Ok((times[COUNT / 2], times[COUNT * 99 / 100]))
    }

    /// Everything once.
    fn measure(&self) -> Result<Vec<(&'static str, f64)>> {
        let (p50, p99) = self.round_trip()?;
        Ok(vec![
            ("TCP up, 1 stream, Gbit/s", self.tcp("")?),
            ("TCP down, 1 stream, Gbit/s", self.tcp("-R")?),
            ("TCP up, 4 streams, Gbit/s", self.tcp("-P 4")?),
            ("TCP down, 4 streams, Gbit/s", self.tcp("-P 4 -R")?),
            ("UDP up, 64 B, k packets/s", self.udp(64, true)?),
            ("UDP down, 64 B, k packets/s", self.udp(64, false)?),
            ("UDP up, 1200 B, k packets/s", self.udp(1200, true)?),
            ("UDP down, 1200 B, k packets/s", self.udp(1200, false)?),
            ("round trip p50, µs", p50),
            ("round trip p99, µs", p99),
        ])
    }
}

/// How long one rate is tried.
const TRIAL: Duration = Duration::from_millis(500);

/// Sends at `rate` for [`TRIAL`] and counts both ends.
fn trial(from: &UdpSocket, to: &UdpSocket, size: usize, rate: f64) -> Result<(f64, f64)> {
    to.set_read_timeout(Some(Duration::from_millis(200)))?;
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut buf = [0; 2048];
            let mut received = 0_u32;
            let begin = Instant::now();
            // The timeout ends it: nothing came for that long.
            loop {
                match uninterrupted(|| to.recv(&mut buf)) {
                    Ok(_) => received += 1,
                    Err(_) if begin.elapsed() > TRIAL => return received,
                    Err(_) => {}
                }
            }
        });
        let (begin, payload) = (Instant::now(), vec![0; size]);
        let mut sent = 0_u32;
        loop {
            let elapsed = begin.elapsed();
            if elapsed >= TRIAL {
                break;
            }
            if f64::from(sent) < elapsed.as_secs_f64() * rate {
                // A full queue is a loss that the sender sees; both count.
                let _ = from.send(&payload);
                sent += 1;
            } else {
                thread::yield_now();
            }
        }
        let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver thread"))?;
        Ok((f64::from(sent), f64::from(received)))
    })
}

/// Median, least and most.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}

fn cell(values: &[f64], digits: usize) -> String {
    let (median, least, most) = spread(values);
    format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
}

fn table(results: &BTreeMap<(usize, &str), Vec<f64>>, order: &[&'static str]) -> String {
    let mut out = format!(
        "| | {} | clat ÷ native | clat ÷ tayga |\n| --- | --- | --- | --- | --- | --- |\n",
        SUBJECTS.join(" | ")
    );
    for name in order {
        let values: Vec<&[f64]> =
            (0..3).filter_map(|i| results.get(&(i, name)).map(Vec::as_slice)).collect();
        let ratio = |other: usize| {
            let pairs = values[1].iter().zip(values[other]);
            cell(&pairs.map(|(a, b)| a / b).collect::<Vec<_>>(), 2)
        };
        let digits = if name.contains("Gbit") { 2 } else { 0 };
        let cells: Vec<_> = values.iter().map(|v| cell(v, digits)).collect();
        let _ = writeln!(out, "| {name} | {} | {} | {} |", cells.join(" | "), ratio(0), ratio(2));
    }
    out
}

/// The lines with times of `cargo bench -p clat_xlat`.
fn xlat() -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output =
        Command::new(cargo).args(["bench", "-p", "clat_xlat"]).current_dir(root).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "cargo bench: {}", String::from_utf8_lossy(&output.stderr));
    // A long name stands on a line of its own, the times on the next.
    let mut lines = String::new();
    let mut name = "";
    for line in text.lines() {
        if let Some((before, times)) = line.split_once("time:") {
            let name = if before.trim().is_empty() { name } else { before.trim() };
            let _ = writeln!(lines, "{name:<40} {}", times.trim());
        }
        name = line.trim();
    }
    Ok(lines)
}

fn machine() -> String {
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    format!("{cpus} CPUs ({model}), Linux {}", kernel.trim())
}

fn main() -> Result<()> {
    if !can_run(&["ip", "iperf3", "tayga", "ping"]) {
        return Ok(());
    }
    let rounds: usize = std::env::args().nth(1).map_or(Ok(5), |n| n.parse()).context("ROUNDS")?;
    ensure!(rounds > 0, "ROUNDS");
    let mut results: BTreeMap<(usize, &str), Vec<f64>> = BTreeMap::new();
    let mut order = Vec::new();
    for round in 0..rounds {
        for (i, name) in SUBJECTS.into_iter().enumerate() {
            let lab = Lab::new(Offloads::Default)?;
            let measured = Subject::new(&lab, name)?.measure().context(name)?;
            eprintln!("round {} of {rounds}, {name}: {measured:.2?}", round + 1);
            order = measured.iter().map(|(what, _)| *what).collect();
            for (what, value) in measured {
                results.entry((i, what)).or_default().push(value);
            }
        }
    }
    let text = format!(
        "{BEGIN}\n{}; {rounds} interleaved rounds, median (least–most); ratios are of each round. Uplink: a veth with \
         default offloads, MTU 1500, and a router. TCP is cubic, UDP at less than 0.1 % loss.\n\n{}\n`clat_xlat`, per \
         packet (criterion: low, estimate, high):\n\n```text\n{}```\n\n{END}",
        machine(),
        table(&results, &order),
        xlat()?
    );
    std::io::stdout().write_all(text.as_bytes())?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
    let old = fs::read_to_string(&path).unwrap_or_else(|_| format!("# Benchmarks\n\n{BEGIN}{END}"));
    let (before, rest) = old.split_once(BEGIN).with_context(|| format!("no marker in {path:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no end marker in {path:?}"))?;
    fs::create_dir_all(path.parent().context("docs")?)?;
    fs::write(&path, format!("{before}{text}{after}"))?;
    Ok(())
}
