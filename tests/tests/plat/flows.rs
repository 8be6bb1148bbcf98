//! Flows that last, sleep, end and fail.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clat_tests::{can_run, Netns};
use nix::sys::resource::{getrlimit, Resource};

use crate::{python_in, World, SERVER, SERVER6};

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
    let (guest, platd) = world.guest("sleep", &["--clat"])?;
    let started = Instant::now();
    let code = "
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
";
    let before = crate::resident_kib(platd.pid())?;
    let most = std::thread::scope(|scope| {
        let readers = scope.spawn(|| python_in(&guest, code));
        let mut most = (0, 0);
        while !readers.is_finished() {
            let held = world.status("sleep")?["bytes_held"].as_u64().context("a number")?;
            most = (most.0.max(held), most.1.max(crate::resident_kib(platd.pid())?));
            std::thread::sleep(Duration::from_millis(20));
        }
        readers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, anyhow::Error>(most)
    })?;
    ensure!(started.elapsed() >= Duration::from_secs(4));
    // A mebibyte a direction, of four flows that have one in use; of 38 million bytes.
    ensure!(((1 << 20)..=(4 << 20)).contains(&most.0), "{} bytes held", most.0);
    ensure!(most.1 - before < 8 << 10, "{before} KiB, then {}", most.1);
    ensure!(world.status("sleep")?["bytes_held"] == 0, "nothing is left");
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
    python_in(
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
    c = socket.create_connection((server, 86), 5); c.settimeout(5)
    assert c.recv(100) == b'goodbye' and c.recv(1) == b''
    time.sleep(0.3)
    c.sendall(bytes(100000)); c.close()
    # The guest resets.
    c = socket.create_connection((server, 86), 5); c.settimeout(5)
    assert c.recv(100) == b'goodbye'
    c.sendall(b'x'); time.sleep(0.3)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()
    time.sleep(0.5)
    told = socket.create_connection((server, 87), 5).recv(1000)
    assert told == b'100000 and an end, 1 and a reset', told
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
    for target in [SERVER, SERVER6] {
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

/// What is not inside the prefix is IPv6 out there as well.
#[test]
fn ipv6_stays_ipv6() -> Result<()> {
    if !can_run(&["python3", "setpriv", "ping"]) {
        return Ok(());
    }
    const FAR: &str = "2001:db8:7::2";
    let world = World::new()?;
    for line in ["addr add 2001:db8:6::1/64 dev w0 nodad", "route add default via 2001:db8:6::2"] {
        world.host.run(&format!("ip -6 {line}"))?;
    }
    for line in [
        "addr add 2001:db8:6::2/64 dev h0 nodad",
        "addr add 2001:db8:7::2/128 dev lo",
        "route add unreachable 2001:db8:7::7",
    ] {
        world.outside.run(&format!("ip -6 {line}"))?;
    }
    world.outside.run("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.icmp.ratelimit=0")?;
    let repeat = format!(
        "
import socket, threading
s = socket.create_server(({FAR:?}, 80), family=socket.AF_INET6)
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind(({FAR:?}, 80))
def tcp():
    while True:
        c, peer = s.accept()
        print('visitor', peer[0], flush=True)
        while got := c.recv(65536): c.sendall(got)
        c.close()
threading.Thread(target=tcp, daemon=True).start()
print('ready', flush=True)
while True:
    data, peer = u.recvfrom(65536); u.sendto(data, peer)
"
    );
    let mut server = world.outside.spawn(&["python3", "-c", &repeat], &world.path("far.log"))?;
    server.wait_for("ready")?;
    let code = format!(
        "
import errno
want = bytes(i % 251 for i in range(3000000))
c = socket.create_connection(({FAR:?}, 80), 10); c.settimeout(20)
def send(): c.sendall(want); c.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
got = b''
while part := c.recv(65536): got += part
assert got == want, len(got)
def fails(host, port, kind, wanted):
    u = socket.socket(socket.AF_INET6, kind); u.settimeout(10)
    # Errors that may pass are told on demand (IPV6_RECVERR).
    u.setsockopt(socket.IPPROTO_IPV6, 25, 1)
    try: u.connect((host, port)); u.send(b'x'); u.recv(1); assert False
    except OSError as e: assert e.errno in wanted, (host, kind, e)
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    fails({FAR:?}, 9, kind, [errno.ECONNREFUSED])
    fails('2001:db8:7::7', 80, kind, [errno.EHOSTUNREACH, errno.ENETUNREACH])
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.settimeout(10); u.connect(({FAR:?}, 80))
for size in (0, 1, 1400, 9000): u.send(bytes(size)); assert len(u.recv(65536)) == size
"
    );
    world.python(&[], &code)?;
    ensure!(server.log().contains("visitor 2001:db8:6::1"), "{}", server.log());
    for size in ["56", "4000"] {
        let ping = ["run", "--", "ping", "-c", "2", "-i", "0.2", "-W", "3", "-s", size, FAR];
        let output = world.platd(&ping)?;
        ensure!(output.status.success(), "{output:?}");
    }
    Ok(())
}

/// A connection whose other end has fallen silent ends for the guest when the host gives it up, and not before.
#[test]
fn a_connection_that_times_out() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    // It gives up after seconds.
    world.host.run("sysctl -qw net.ipv4.tcp_retries2=3")?;
    let (guest, _platd) = world.guest("silent", &["--clat"])?;
    let code = format!(
        "
import socket, sys, time
cs = [socket.create_connection((server, 81), 10) for server in ({SERVER:?}, {SERVER6:?})]
for c in cs: c.sendall(b'x'); assert c.recv(1) == b'x'
print('connected', flush=True)
time.sleep(1)
begin = time.monotonic()
for c in cs: c.settimeout(20); c.sendall(b'is anybody there?')
for c in cs:
    try: c.recv(1); assert False
    except ConnectionResetError: pass
assert time.monotonic() - begin > 1
print('reset', flush=True)
"
    );
    let mut guest = guest.spawn(&["python3", "-c", &code], &world.path("silent.guest"))?;
    guest.wait_for("connected")?;
    world.outside.run("ip route add blackhole 203.0.113.1/32")?;
    guest.wait_for("reset")?;
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

/// RFC 4787: a port of the guest's is one port outside, whomever it speaks to, and lets in all ports of those, but nobody else.
#[test]
fn who_may_answer() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    world.outside.run("ip addr add 198.51.100.2/32 dev lo")?;
    // Each tells by which port it sees the guest, and has another socket say so too.
    let tell = "
import socket
def bound(host, port):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((host, port)); return u
first, second, other = bound('198.51.100.1', 91), bound('198.51.100.2', 91), bound('198.51.100.1', 92)
print('ready', flush=True)
while True:
    data, peer = first.recvfrom(100)
    for u in (second, other, first): u.sendto(b'%d' % peer[1], peer)
";
    let mut server = world.outside.spawn(&["python3", "-c", tell], &world.path("tell.log"))?;
    server.wait_for("ready")?;
    let (guest, _platd) = world.guest("who", &["--clat"])?;
    let code = "
for first, second in ((S4, '198.51.100.2'), (S6, '64:ff9b::198.51.100.2')):
    u = socket.socket(socket.AF_INET6 if ':' in first else socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(10)
    def ask(senders):
        u.sendto(b'?', (first, 91))
        got = sorted(u.recvfrom(100) for _ in range(senders))
        u.settimeout(0.5)
        try: got.append(u.recvfrom(100))
        except TimeoutError: pass
        u.settimeout(10)
        return {data for data, _ in got}, sorted((peer[0], peer[1]) for _, peer in got)
    def host(text): return socket.getaddrinfo(text, 0)[0][4][0]
    ports, senders = ask(2)
    assert senders == [(host(first), 91), (host(first), 92)], senders
    # Spoken to, it may; and has been seen by the same port.
    u.sendto(b'hello', (second, 91))
    again, senders = ask(3)
    assert senders == [(host(first), 91), (host(first), 92), (host(second), 91)], senders
    assert len(ports) == 1 and again == ports, (ports, again)
";
    python_in(&guest, code)?;
    let status = world.status("who")?;
    ensure!(status["stats"]["drops"]["filtered"] == 2, "{status}");
    let (platd, socket) = (world.path("platd"), world.path("who.status"));
    let text = world.host.run(&format!("{} status {}", platd.display(), socket.display()))?;
    ensure!(text.contains("filtered 2"), "{text}");
    Ok(())
}

/// A network behind the world's router, by a link of MTU 1300, with 198.51.100.9 and .10.
fn far(world: &World) -> Result<Netns> {
    let far = Netns::new(crate::number(), "far")?;
    world.outside.run(&format!("ip link add f0 type veth peer name o0 netns {}", far.name()))?;
    for line in [
        "addr add 192.0.2.1/24 dev f0",
        "link set f0 mtu 1300 up",
        "route add 198.51.100.8/30 via 192.0.2.9",
    ] {
        world.outside.run(&format!("ip {line}"))?;
    }
    for line in [
        "addr add 192.0.2.9/24 dev o0",
        "addr add 198.51.100.9/32 dev lo",
        "addr add 198.51.100.10/32 dev lo",
        "link set lo up",
        "link set o0 mtu 1300 up",
        "route add default via 192.0.2.1",
    ] {
        far.run(&format!("ip {line}"))?;
    }
    world.outside.run("sysctl -qw net.ipv4.ip_forward=1")?;
    Ok(far)
}

/// What is too big for a hop on the way, the guest's kernel hears, as by a router (RFC 8201, RFC 1191), and sends less.
#[test]
fn a_smaller_hop() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    let far = far(&world)?;
    let repeat = "
import socket, threading
def udp(host):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((host, 80))
    while True:
        data, peer = u.recvfrom(65536); u.sendto(data, peer)
for host in ('198.51.100.9', '198.51.100.10'): threading.Thread(target=udp, args=(host,)).start()
s = socket.create_server(('', 80))
print('ready', flush=True)
while True:
    c, _ = s.accept(); n = 0
    while got := c.recv(65536): n += len(got)
    c.sendall(str(n).encode()); c.close()
";
    let mut server = far.spawn(&["python3", "-c", repeat], &world.path("far.log"))?;
    server.wait_for("ready")?;
    let (guest, _platd) = world.guest("hop", &["--clat"])?;
    let code = "
import errno
# The third time platd's host knows already, and the guest's IPv4 does not.
for host, least in (('198.51.100.9', 1300), ('64:ff9b::198.51.100.10', 1320), ('198.51.100.10', 1300)):
    v6 = ':' in host
    u = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(10)
    u.connect((host, 80))
    # IPV6_MTU and IP_MTU: of the path, as the kernel knows it.
    mtu = lambda: u.getsockopt(socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP, 24 if v6 else 14)
    before, deadline = mtu(), time.monotonic() + 10
    while mtu() == before:
        assert time.monotonic() < deadline, (host, 'nobody said so')
        try: u.send(bytes(1400))
        except OSError as e: assert e.errno == errno.EMSGSIZE, e
        time.sleep(0.1)
    assert mtu() == least, (host, before, mtu())
    # In fragments now, both ways, on a socket that has heard nothing yet.
    u = socket.socket(u.family, socket.SOCK_DGRAM); u.settimeout(10); u.connect((host, 80))
    for size in (1, 1400, 4000):
        u.send(bytes(size)); assert len(u.recv(65536)) == size, (host, size)
    c = socket.create_connection((host, 80), 10); c.settimeout(20)
    c.sendall(bytes(3000000)); c.shutdown(socket.SHUT_WR)
    assert c.recv(100) == b'3000000'
";
    python_in(&guest, code)?;
    // So does echo, whose destination the guest's IPv6 has not heard of.
    let ping = ["ping", "-6", "-n", "-c", "1", "-M", "do", "-s", "1400", "64:ff9b::198.51.100.9"];
    let output = guest.output(&ping)?;
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(text.concat().contains("mtu=1320"), "{text:?}");
    guest.run("ping -6 -n -c 1 -s 3000 64:ff9b::198.51.100.9")?;
    Ok(())
}

/// A guest that has as many flows as it may loses its oldest by a new one.
#[test]
fn flows_of_one_guest() -> Result<()> {
    if !can_run(&["python3", "setpriv"]) {
        return Ok(());
    }
    let world = World::new()?;
    let (guest, _platd) = world.guest("each", &["--max-flows-each", "10"])?;
    let code = "
for n in range(30):
    u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.settimeout(10); u.connect((S6, 80))
    u.send(b'%d' % n); assert u.recv(100) == b'%d' % n
";
    python_in(&guest, code)?;
    let status = world.status("each")?;
    ensure!(status["flows_open"] == 10 && status["stats"]["evicted"] == 20, "{status}");
    Ok(())
}

/// What a flow costs is the same beside a hundred thousand others as beside a thousand, and those are all alive. Where fewer
/// descriptors are allowed, the others are fewer.
#[test]
fn many_flows_cost_no_more() -> Result<()> {
    if !can_run(&["python3"]) {
        return Ok(());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let count = hard.saturating_sub(1000).min(100_000).to_string();
    let world = World::new()?;
    let guest = Netns::new(crate::number(), "guest")?;
    // For each of two ports of the server's.
    let ports = ["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"];
    for ns in [&guest, &world.host] {
        ensure!(ns.output(&ports)?.status.success());
    }
    let common = "
import resource, select, socket, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
";
    let repeat = format!(
        "{common}
poll, all = select.epoll(), {{}}
for port in (94, 95, 96):
    s = socket.create_server(('198.51.100.1', port), backlog=4096); s.setblocking(False)
    all[s.fileno()] = s; poll.register(s, select.EPOLLIN)
listeners = set(all)
print('ready', flush=True)
while True:
    for fd, _ in poll.poll():
        if fd in listeners:
            c, _ = all[fd].accept(); all[c.fileno()] = c; poll.register(c, select.EPOLLIN)
        elif got := all[fd].recv(100): all[fd].sendall(got)
        else: all.pop(fd).close()
"
    );
    let mut server = world.outside.spawn(&["python3", "-c", &repeat], &world.path("many.log"))?;
    server.wait_for("ready")?;
    let path = format!("/run/netns/{}", guest.name());
    let platd = world.daemon("many", &["--netns", &path, "--max-flows", "101000"])?;
    crate::wait_until("an address by router advertisement", || {
        Ok(guest.run("ip -6 addr show scope global")?.contains("2001:db8:464:"))
    })?;
    let code = format!(
        "{common}
pid, count = sys.argv[1], int(sys.argv[2])
def connect(port):
    c = socket.socket(socket.AF_INET6); c.settimeout(20); c.connect(({SERVER6:?}, port)); return c
def trip(c):
    c.sendall(b'x'); assert c.recv(1) == b'x'
def used(): return int(open('/proc/%s/schedstat' % pid).read().split()[0])
# Nanoseconds of platd's for a connection with a byte each way, and for a byte each way in one that is there.
def costs():
    best = [1 << 60] * 2
    for _ in range(8):
        begin = used()
        for _ in range(200):
            c = connect(96); trip(c); c.close()
        best[0] = min(best[0], (used() - begin) // 200)
        begin = used()
        for c in held[::len(held) // 500]: trip(c)
        best[1] = min(best[1], (used() - begin) // 500)
    return best
held = [connect(94) for _ in range(1000)]
few = costs()
for n in range(1000, count): held.append(connect(94 + n % 2))
many = costs()
for c in held[::20]: trip(c)
print(*few, *many, flush=True)
sys.stdin.read()
"
    );
    let argv = ["python3", "-c", &code, &platd.pid().to_string(), &count];
    let mut guests = guest.command(&argv).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    BufReader::new(guests.stdout.take().context("piped")?).read_line(&mut said)?;
    let status = world.status("many")?;
    let memory = crate::resident_kib(platd.pid())?;
    drop(guests.stdin.take());
    ensure!(guests.wait()?.success(), "{said}");
    let costs: Vec<u64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [connect_few, trip_few, connect_many, trip_many] = costs[..] else { bail!("{said}") };
    eprintln!(
        "{count} flows: {connect_many} ns a connection (beside 1000: {connect_few}), {trip_many} ns a round trip \
         ({trip_few}), {memory} KiB"
    );
    ensure!(status["stats"]["evicted"] == 0, "{status}");
    ensure!(status["flows_open"].as_u64() >= Some(count.parse()?), "{status}");
    ensure!(connect_many < 3 * connect_few && trip_many < 3 * trip_few, "{said}");
    ensure!(memory < 16_384 + 2 * count.parse::<u64>()?, "{memory} KiB");
    Ok(())
}

/// Routers on the way tell of themselves.
#[test]
fn hops_are_counted() -> Result<()> {
    if !can_run(&["setpriv", "traceroute"]) {
        return Ok(());
    }
    let world = World::new()?;
    let far = far(&world)?;
    for router in [&world.outside, &far] {
        // It tells once a second otherwise.
        router.run("sysctl -qw net.ipv4.icmp_ratelimit=0")?;
    }
    for (target, hops) in [
        ("64:ff9b::198.51.100.9", ["2001:db8:464::1", "64:ff9b::cb00:7102", "64:ff9b::c633:6409"]),
        // By the CLAT; platd's router has no IPv4 address (RFC 7335).
        ("198.51.100.9", ["192.0.0.8", "203.0.113.2", "198.51.100.9"]),
    ] {
        for probes in [&[][..], &["-I"]] {
            let trace = ["run", "--", "traceroute", "-n", "-q", "1", "-w", "3"];
            let output = world.platd(&[&trace[..], probes, &[target]].concat())?;
            let said = String::from_utf8(output.stdout)?;
            let seen = said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
            ensure!(seen.eq(hops), "{probes:?}: {said}");
        }
    }
    Ok(())
}
