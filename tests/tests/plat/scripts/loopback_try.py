# SPDX-License-Identifier: Apache-2.0
import socket
inside = ('127.0.0.1', '127.9.9.9', '0.0.0.0', '0.0.0.1', '169.254.1.1', '255.255.255.255',
          '192.0.0.8')
for server in (*('64:ff9b::' + address for address in inside), '2001:db8:464::99'):
    try: socket.create_connection((server, 80), 2); assert False, server
    except OSError as e: assert not isinstance(e, ConnectionRefusedError), server
