"""Servers for tests: on loopback, on a free port, gone when the test ends."""
import contextlib
import hashlib
import socket
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files:
    """An HTTP server of the dict `files`, path to bytes, with ranges, ETags and faults on demand."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.breaks, self.lies, self.stalls = {}, {}, set()
        self.redirects, self.etags, self.ranges = {}, True, True
        files = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                files.answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request):
        path = request.path.partition("://")[2].partition("/")[2].join(["/", ""]) if "://" in request.path else request.path
        self.requests.append((path, request.headers.get("Range")))
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.send_header("Content-Length", "0")
            return request.end_headers()
        data = self.files.get(path)
        if data is None:
            return request.send_error(404)
        tag, start = '"' + hashlib.sha256(data).hexdigest()[:16] + '"', 0
        asked = request.headers.get("Range")
        if asked and self.ranges and request.headers.get("If-Range", tag) == tag:
            start = int(asked.partition("=")[2].partition("-")[0])
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(data) - start + self.lies.get(path, 0)))
        if self.etags:
            request.send_header("ETag", tag)
        request.end_headers()
        body = data[start:]
        if path in self.breaks:
            request.wfile.write(body[:self.breaks.pop(path)])
            request.wfile.flush()
            if path in self.stalls:
                time.sleep(300)
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return None
        with contextlib.suppress(OSError):
            request.wfile.write(body)
        if path in self.lies:
            request.close_connection = True
        return None

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@contextlib.contextmanager
def running(words, ready, log, seconds=60):
    """Run a server until the `with` statement ends; ready() tells when it answers."""
    with open(log, "wb") as output:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        end = time.monotonic() + seconds
        while not ready():
            assert server.poll() is None and time.monotonic() < end, open(log).read()[-2000:]
            time.sleep(0.1)
        yield server
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def registry(place):
    """A real registry with its data in the directory place, and its log in place/log; yields its host:port."""
    port = free_port()
    (place / "config.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {place}/data\nhttp:\n  addr: 127.0.0.1:{port}\n")

    def ready():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/").status == 200
        except OSError:
            return False

    with running(["docker-registry", "serve", place / "config.yml"], ready, place / "log"):
        yield f"127.0.0.1:{port}"
