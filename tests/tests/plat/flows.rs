//! Flows that last, sleep, end and fail.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use clat_tests::can_run;

use crate::{World, SERVER};

/// As a terminal does: small writes both ways, with pauses. And datagrams beside them.
#[test]
fn flows_that_idle_and_talk() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    world.python(
        &[],
        "
def talk(server):
    family = socket.AF_INET6 if ':' in server else socket.AF_INET
    c = socket.create_connection((server, 81), 10); c.settimeout(10)
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(10)
    for i in range(60):
        for word in (b'l', b's', b' -l %d\\n' % i):
            c.sendall(word)
            got = b''
            while len(got) < len(word): got += c.recv(100)
            assert got == word
        u.sendto(b'%d' % i, (server, 80))
        assert u.recv(100) == b'%d' % i
        time.sleep(3 if i in (20, 40) else 0.1)
    done.append(server)
done = []
threads = [threading.Thread(target=talk, args=(s,)) for s in (S4, S6)]
for t in threads: t.start()
for t in threads: t.join()
assert len(done) == 2
",
    )?;
    Ok(())
}

/// A window of zero in either direction, for seconds; all arrives in the end, and memory is held back meanwhile.
#[test]
fn readers_that_sleep() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, _platd) = world.guest("sleep", &["--clat"])?;
    let started = Instant::now();
    crate::python_in(
        &guest,
        "
want = bytes(i % 251 for i in range(16000000))
def up(server):
    c = socket.create_connection((server, 85), 20); c.settimeout(60)
    c.sendall(want); c.shutdown(socket.SHUT_WR)
    assert c.recv(100) == b'16000000'
    done.append(0)
def down(server):
    c = socket.socket(socket.AF_INET6 if ':' in server else socket.AF_INET)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192); c.settimeout(60)
    c.connect((server, 82))
    time.sleep(4)
    got = b''
    while part := c.recv(65536): got += part
    assert got == want[:3000000]
    done.append(0)
done = []
threads = [threading.Thread(target=f, args=(s,)) for f in (up, down) for s in (S4, S6)]
for t in threads: t.start()
for t in threads: t.join()
assert len(done) == 4
",
    )?;
    ensure!(started.elapsed() >= Duration::from_secs(4));
    let status = world.status("sleep")?;
    ensure!(status["bytes_held"].as_u64() < Some(8 << 20), "{status}");
    Ok(())
}

/// One end may go on when the other has said its last; a reset goes through in both directions.
#[test]
fn halves_and_resets() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, mut platd) = world.guest("ends", &["--clat"])?;
    crate::python_in(
        &guest,
        "
import struct
for server in (S4, S6):
    # The guest ends first, and is still answered.
    c = socket.create_connection((server, 80), 5)
    c.sendall(b'half'); c.shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    assert c.recv(100) == b'HALF' and c.recv(1) == b''
    # The host ends first, and is still spoken to.
    c = socket.create_connection((server, 82), 5)
    while c.recv(65536): pass
    c.close()
    # The guest resets.
    c = socket.create_connection((server, 81), 5)
    c.sendall(b'x'); assert c.recv(1) == b'x'
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()
    # The host resets.
    c = socket.create_connection((server, 84), 5)
    c.sendall(b'x')
    try: assert c.recv(1) != b''
    except ConnectionResetError: pass
",
    )?;
    crate::wait_until("flows end", || Ok(world.status("ends")?["flows_open"] == 0))?;
    platd.stop(nix::sys::signal::Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn iperf3_each_way() -> Result<()> {
    if !can_run(&["iperf3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    let log = world.path("iperf3.log");
    let mut server = world.outside.spawn(&["iperf3", "--forceflush", "-s"], &log)?;
    server.wait_for("listening")?;
    for target in [crate::SERVER, crate::SERVER6] {
        for direction in [&[][..], &["-R"]] {
            let args =
                [&["run", "--", "iperf3", "-J", "-t", "2", "-c", target], direction].concat();
            let output = world.platd(&args)?;
            ensure!(output.status.success(), "{output:?}");
            let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            let rate = json["end"]["sum_received"]["bits_per_second"].as_f64();
            ensure!(rate > Some(1e7), "{target} {direction:?}: {rate:?}");
        }
    }
    Ok(())
}

/// What a host learns of a destination, its guest does: no route there, nobody there, no answer.
#[test]
fn errors_of_the_host_come_back() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    for line in [
        "ip route add unreachable 198.51.100.7",
        "ip route add blackhole 198.51.100.8",
        "sysctl -qw net.ipv4.ip_forward=1",
        // A router tells once a second otherwise.
        "sysctl -qw net.ipv4.icmp_ratelimit=0",
    ] {
        world.outside.run(line)?;
    }
    // It gives up after three seconds.
    world.host.run("sysctl -qw net.ipv4.tcp_syn_retries=1")?;
    world.python(
        &[],
        "
import errno
gone = (errno.EHOSTUNREACH, errno.ENETUNREACH)
def tcp(host, wanted):
    begin = time.monotonic()
    try: socket.create_connection((host, 80), 20); assert False, host
    except TimeoutError: assert False, (host, 'nobody said so')
    except OSError as e: assert e.errno in wanted, (host, e)
    assert time.monotonic() - begin < 15, host
def udp(host):
    v6 = ':' in host
    u = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(20)
    # Errors that may pass are told on demand (IPV6_RECVERR, IP_RECVERR).
    u.setsockopt(socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP, 25 if v6 else 11, 1)
    u.connect((host, 80)); u.send(b'x')
    try: u.recv(1); assert False, host
    except TimeoutError: assert False, (host, 'nobody said so')
    except OSError as e: assert e.errno in gone, (host, e)
for prefix in ('64:ff9b::', ''):
    for host in ('198.51.100.7', '203.0.113.77'):
        tcp(prefix + host, gone)
        udp(prefix + host)
    tcp(prefix + '198.51.100.8', gone + (errno.ECONNREFUSED, errno.ECONNRESET))
",
    )?;
    Ok(())
}

/// A train of datagrams stays one each way, through the device, platd and the host's kernel, and loses no boundary.
#[test]
fn trains_of_datagrams_stay_whole() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    // UDP_SEGMENT and UDP_GRO of linux/udp.h.
    let common = "
import socket, struct
SEGMENT, GRO = 103, 104
def take(u):
    data, ancillary, _, peer = u.recvmsg(65536, 64)
    return data, [struct.unpack('i', value)[0] for level, kind, value in ancillary if kind == GRO], peer
def give(u, data, size, to): u.sendmsg([data], [(socket.SOL_UDP, SEGMENT, struct.pack('H', size))], 0, to)
";
    let world = World::new()?;
    let repeat = format!(
        "{common}
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(({SERVER:?}, 90))
u.setsockopt(socket.SOL_UDP, GRO, 1)
print('ready', flush=True)
while True:
    data, sizes, peer = take(u)
    print(len(data), sizes, flush=True)
    give(u, data, 1000, peer)
"
    );
    let mut server = world.outside.spawn(&["python3", "-c", &repeat], &world.path("trains.log"))?;
    server.wait_for("ready")?;
    let guest = format!(
        "{common}
data = b''.join(bytes([n]) * 1000 for n in range(20)) + b'the end'
for family, host in ((socket.AF_INET, S4), (socket.AF_INET6, S6)):
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(10)
    u.setsockopt(socket.SOL_UDP, GRO, 1)
    give(u, data, 1000, (host, 90))
    got, sizes, _ = take(u)
    assert (got, sizes) == (data, [1000]), (len(got), sizes)
"
    );
    world.python(&[], &guest)?;
    assert_eq!(server.log().matches("20007 [1000]").count(), 2, "{}", server.log());
    Ok(())
}
