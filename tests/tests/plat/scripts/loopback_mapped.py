# SPDX-License-Identifier: Apache-2.0
import socket
print(socket.create_connection(('64:ff9b::192.0.2.2', 80), 5).recv(100))
