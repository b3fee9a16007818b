"""Open pages in a headless Chromium as a person would, and say what was on them. Nothing but Python's own library:
the browser is spoken to through a pipe.

usage: LOGIN=USER:PASSWORD browse.py ADDRESS DIRECTORY URL=TEXT...

Every *.localhost leads to ADDRESS. Of each page: waits until TEXT is on it, leaves a picture in DIRECTORY, and prints
a line of JSON with its title, whether the text came, and whatever went wrong: failed requests, exceptions, complaints
of the browser.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 40  # seconds: TensorBoard is large, and the machine may be busy
TRIES = 10  # each only after the network has changed


def key_of(address, host):
    """The hash by which Chromium may be told to trust a certificate, whoever signed it: the signature is for other
    tests, and a fresh browser's store can be filled only with tools that few machines have."""
    shell = (
        'openssl s_client -connect "$0:443" -servername "$1" </dev/null 2>/dev/null | openssl x509 -noout -pubkey |'
        " openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64"
    )
    return subprocess.run(["sh", "-c", shell, address, host], check=True, capture_output=True, text=True).stdout.strip()


class Browser:
    def __init__(self, address, hosts, profile):
        to_us, from_browser = os.pipe()
        to_browser, from_us = os.pipe()
        keys = ",".join(key_of(address, host) for host in hosts)

        def pipes():
            # Chromium reads from 3 and writes to 4. Copied up first: the numbers may overlap.
            a, b = os.dup(to_browser), os.dup(from_browser)
            high = max(a, b) + 10
            os.dup2(a, high), os.dup2(b, high + 1)
            os.dup2(high, 3), os.dup2(high + 1, 4)

        self.process = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--remote-debugging-pipe", "--window-size=1280,900",
             f"--user-data-dir={profile}", f"--host-resolver-rules=MAP *.localhost {address}",
             f"--ignore-certificate-errors-spki-list={keys}"],
            preexec_fn=pipes, close_fds=False, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )
        os.close(to_browser), os.close(from_browser)
        self.reader, self.writer = os.fdopen(to_us, "rb", 0), os.fdopen(from_us, "wb", 0)
        self.left, self.number, self.session, self.wrong = b"", 0, None, []

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        return self.number

    def ask(self, method, **params):
        number = self.send(method, **params)
        while True:
            message = self.receive()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def receive(self):
        while b"\0" not in self.left:
            more = self.reader.read(1 << 16)
            if not more:
                raise RuntimeError("the browser has gone away")
            self.left += more
        line, self.left = self.left.split(b"\0", 1)
        message = json.loads(line)
        self.notice(message.get("method"), message.get("params", {}))
        return message

    def notice(self, event, params):
        if event == "Fetch.requestPaused":
            self.send("Fetch.continueRequest", requestId=params["requestId"])
        elif event == "Fetch.authRequired":
            user, password = os.environ["LOGIN"].split(":", 1)
            answer = {"response": "ProvideCredentials", "username": user, "password": password}
            self.send("Fetch.continueWithAuth", requestId=params["requestId"], authChallengeResponse=answer)
        elif event == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.wrong.append(f"{params['response']['status']} {params['response']['url']}")
        elif event == "Network.loadingFailed" and not params.get("canceled"):
            self.wrong.append(f"{params['type']}: {params['errorText']}")
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.wrong.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.wrong.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def network_changed(self):
        """Another machine of the lab came or went, and Chromium gave up what it was fetching, as it does on the road."""
        return any("ERR_NETWORK_CHANGED" in one for one in self.wrong)

    def look_for(self, text):
        look = f"[document.title, document.body?.innerText.includes({json.dumps(text)}) ?? false]"
        since, title, found = time.monotonic(), "", False
        while not found and not self.network_changed() and time.monotonic() < since + PATIENCE:
            time.sleep(0.25)
            title, found = self.ask("Runtime.evaluate", expression=look, returnByValue=True)["result"]["value"]
        # What is drawn after the words are there: charts, fonts.
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            self.ask("Runtime.evaluate", expression="0")
            time.sleep(0.1)
        return title, found

    def open(self, url, text, picture):
        self.session, self.wrong = None, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Network", "Log"]:
            self.ask(f"{domain}.enable")
        self.ask("Fetch.enable", handleAuthRequests=True)
        for _ in range(TRIES):
            since, self.wrong = time.monotonic(), []
            self.ask("Page.navigate", url=url)
            title, found = self.look_for(text)
            if not self.network_changed():
                break
        image = self.ask("Page.captureScreenshot", format="png")["data"]
        Path(picture).write_bytes(base64.b64decode(image))
        return {"url": url, "title": title, "found": found, "seconds": round(time.monotonic() - since, 1), "wrong": self.wrong}


def main():
    address, directory, *pages = sys.argv[1:]
    pages = [page.split("=", 1) for page in pages]
    hosts = sorted({urlsplit(url).hostname for url, _ in pages})
    profile = tempfile.mkdtemp()
    browser = Browser(address, hosts, profile)
    try:
        for n, (url, text) in enumerate(pages):
            name = f"{n + 1}-{urlsplit(url).hostname.split('.')[0]}.png"
            print(json.dumps(browser.open(url, text, Path(directory, name))), flush=True)
    finally:
        browser.process.kill()
        browser.process.wait()
        # Its helpers end a little later than it does, and write until then.
        while os.path.exists(profile):
            shutil.rmtree(profile, ignore_errors=True)
            time.sleep(0.1)


main()
