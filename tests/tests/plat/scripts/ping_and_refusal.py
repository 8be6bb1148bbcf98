# SPDX-License-Identifier: Apache-2.0
# Follows talk.py.
import subprocess, time
S6 = sys.argv[1]
subprocess.run(['ping', '-c', '1', '-W', '5', S6], check=True)
try: socket.create_connection((S6, 9), 5); assert False
except ConnectionRefusedError: pass
time.sleep(0.5)
