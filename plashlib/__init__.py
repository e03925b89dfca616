"""What the plash commands share. Each module has one subject:

cli         the command line: arguments, errors, exit statuses
docs        the commands and the text at their top
store       the data directory: images, names, work in progress
namespaces  user and mount namespaces, mounts; knows nothing of the store
memory      the ids that commands printed, by their words and by session
container   what a process sees: an image as its root filesystem
archive     root filesystems to and from tar
pipeline    tar and compression programs in a row, and what they complain of
merged      what layers show together, read without mounting them
export      layers of an image, held open while they are written out
atomic      files that appear whole or not at all
mountinfo   what is mounted where
download    files from the network, verified and resumed
docker      docker and podman, as the user
programs    helper programs such as tar: found, started with a clean environment, ended with us
progress    a line on the terminal for long steps
"""

__version__ = "0.1.0"


class Error(Exception):
    """A failure that the user can act on; its text is one line without a full stop."""
