# SPDX-License-Identifier: Apache-2.0
import errno, socket, time
gone = (errno.EHOSTUNREACH, errno.ENETUNREACH)
def tcp(host, wanted):
    begin = time.monotonic()
    try: socket.create_connection((host, 80), 20); assert False, host
    except TimeoutError: assert False, (host, 'nobody said so')
    except OSError as e: assert e.errno in wanted, (host, e)
    assert time.monotonic() - begin < 15, host
def udp(host):
    v6 = ':' in host
    u = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(20)
    # Transient errors are reported only with IPV6_RECVERR and IP_RECVERR.
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
