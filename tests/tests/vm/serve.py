# SPDX-License-Identifier: Apache-2.0
"""A web server that only IPv4 has: some words, a megabyte, a file that never ends, one that
also takes its time; what is put there it counts."""
import http.server
import time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        if self.path == "/megabyte": self.wfile.write(bytes(i % 251 for i in range(1000000)))
        elif self.path == "/endless":
            while True: self.wfile.write(bytes(65536))
        elif self.path == "/slowly":
            while True: self.wfile.write(bytes(1000)); time.sleep(0.1)
        else: self.wfile.write(b"Hello\n")
    def do_PUT(self):
        got = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d\n" % got)
http.server.ThreadingHTTPServer.daemon_threads = True
server = http.server.ThreadingHTTPServer(("198.51.100.1", 80), Handler)
print("ready", flush=True)
server.serve_forever()
