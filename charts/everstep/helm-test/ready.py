"""Ask the operator's Service until its processes are ready and one of them has said that it leads."""

import os
import sys
import time
import urllib.error
import urllib.request

operator = os.environ["OPERATOR"]
if os.environ["REPLICAS"] == "0":
    sys.exit("replicas is 0: there is no operator to test")
deadline = time.monotonic() + 90
problem = "no answer"
while time.monotonic() < deadline:
    try:
        for path in ("/healthz", "/readyz", "/metrics"):
            with urllib.request.urlopen(operator + path, timeout=5) as answer:
                text = answer.read().decode()
        if "\neverstep_leader 1.0\n" in text:
            print(f"{operator} is ready and holds the Lease")
            sys.exit(0)
        problem = "no process that answered holds the Lease"
    except (OSError, urllib.error.URLError) as error:
        problem = str(error)
    time.sleep(1)
sys.exit(f"{operator}: {problem}; see kubectl logs of the operator")
