# SPDX-License-Identifier: Apache-2.0
import resource, select, socket
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
poll, all = select.epoll(), {}
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
