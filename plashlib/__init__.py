"""What the plash commands share. Each module has one subject.

cli            the command line: argv, messages, exit statuses
steps          instructions of a Containerfile: each is remembered by an argv
settingsteps   those that change the configuration alone
copysteps      COPY and ADD: what they copy, and how that is remembered
making         what RUN, WORKDIR, COPY and ADD do to files
runmounts      RUN --mount
copying        files into an image, with the image as root directory
sources        what COPY and ADD copy from: globs, ignore files
containerfile  the grammar of Containerfiles: instructions, stages, variables
imageconfig    configurations of images: read and changed
cache          ids by the inputs of the command that made them, and by session
inputs         what the result of a command depends on
usage          how much of the disk images take, and ages and sizes in text
removal        rm and shrink: images go in one rename
build          what a command sees that builds an image, and how it ends
mksquashfs     squashfs files of images
export         layers of an image, held open while they are written out
container      what a process sees: an image as its root filesystem
changes        directories that keep what is written on top of an image
execution      becoming the command: its program, and what runs foreign ones
emulate        root's calls where one id is mapped
users          the users of an image, by its own passwd and group
foreign        programs of other architectures, by QEMU's user emulation
cdi            devices by their CDI name, as vendors' specifications describe them
loader         ld.so's cache in a container, and sonames
binds          host directories and files in a container, and where they are placed
download       files from the network, verified and resumed
docker         docker and podman, run as the user
oci            skopeo, OCI layouts, image configuration
squashfs       squashfs files, mounted without unpacking
layers         layer archives of OCI images
unpack         a layer archive into a directory, whatever it holds
whiteouts      what a layer hides of those below, and what it implies
archive        root filesystems to and from tar
pipeline       tar and compression programs in a row, and what they complain of
merged         what layers show together, read without mounting them
programs       helper programs such as tar: found, started clean, ended with plash
progress       a line on the terminal for long steps
commands       commands of the host that push:command wrote
atomic         files that appear whole or not at all
work           tmp/: work in progress, and what is garbage
names          symbolic links to images: map/, cache/, recall/
store          Image, and how an image appears
history        what made an image, and when
datadir        the data directory: where it is, how it is created and repaired
caller         what the caller brings: working directory, environment, home
docs           which commands there are, and their header texts
headers        what a header text says: usage, options, what is printed
mountinfo      what is mounted where
processes      which process is which, who uses an image (image_users), child processes
locks          locks on directories
ids            root of a user namespace, and subordinate ids
namespaces     libc, user, mount and pid namespaces, overlay, pivot_root
"""

__version__ = "0.1.0"


def is_number(text: str) -> bool:
    """Whether text is an ASCII decimal number; str.isdigit() takes digits that int() refuses."""
    return text.isascii() and text.isdigit()


class Error(Exception):
    """A failure that the user can act on: its text is one line without a full stop.

    status is the exit status of a command that fails with it.
    """

    status = 1


class CannotExecute(Error):
    """The command to run cannot be executed."""

    status = 126


class CommandNotFound(Error):
    """The command to run is not there."""

    status = 127
