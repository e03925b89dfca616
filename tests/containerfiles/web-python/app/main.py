import os
import sys

from flask import Flask

app = Flask(__name__)


@app.get("/")
def index():
    return f"hello from {os.getcwd()} as {os.getuid()}"


if __name__ == "__main__":
    print(app.test_client().get(sys.argv[1]).text)
