"""Can code reach what is outside: networks, sockets, files, the environment, other processes?"""

from envs.sandbox.probes.attempt import Probe

REACH = (
    Probe("TCP", "import socket\nsocket.create_connection(('127.0.0.1', $port), 1)\nprint('ESCAPED')"),
    Probe(
        "UDP",
        "from socket import *\nsocket(AF_INET, SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))\nprint('ESCAPED')",
    ),
    Probe("name lookup", "import socket\nsocket.getaddrinfo('localhost', 80)\nsocket.socket()\nprint('ESCAPED')"),
    Probe(
        "socket in the file system",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('$unix_socket')\nprint('ESCAPED')",
    ),
    Probe(
        "abstract socket",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0$abstract')\nprint('ESCAPED')",
    ),
    Probe("environment", "import os\nprint('ESCAPED' if '$secret' in str(os.environ) else '')", "process"),
    Probe(
        "environment of its own memory",
        "print('ESCAPED' if b'$secret' in open('/proc/self/environ', 'rb').read() else '')",
        "process",
    ),
    Probe("environment of the host", "open('/proc/$host/environ', 'rb').read()\nprint('ESCAPED')"),
    Probe("memory of the host", "open('/proc/$host/mem', 'rb')\nprint('ESCAPED')"),
    Probe("descriptors of the host", "import os\nos.listdir('/proc/$host/fd')\nprint('ESCAPED')"),
    Probe(
        "inherited descriptors",
        "import os\nfor n in range(5, 300):\n    try:\n        if os.read(n, 1) is not None: print('ESCAPED', n)\n"
        "    except OSError: pass",
        "process",
    ),
    Probe("secret file", "print('ESCAPED', open('$secret_file').read())"),
    Probe("password file", "print('ESCAPED', open('/etc/passwd').read()[:10])"),
    Probe("list of the root folder", "import os\nprint('ESCAPED', os.listdir('/'))"),
    Probe("installed packages and their data", "import os\nprint('ESCAPED', os.listdir('$package'))"),
    Probe("writes outside", "open('$planted', 'w').close()\nprint('ESCAPED')"),
    Probe("changes rights outside", "import os\nos.chmod('$secret_file', 0o777)\nprint('ESCAPED')"),
    Probe("changes times outside", "import os\nos.utime('$secret_file', (0, 0))\nprint('ESCAPED')"),
    Probe("removes outside", "import os\nos.unlink('$secret_file')\nprint('ESCAPED')"),
    Probe("symbolic link", "import os\nos.symlink('$secret_file', 'link')\nprint('ESCAPED', open('link').read())"),
    Probe("hard link", "import os\nos.link('$secret_file', 'link')\nprint('ESCAPED', open('link').read())"),
    Probe("named pipe", "import os\nos.mkfifo('pipe')\nprint('ESCAPED')"),
    Probe("signals the host", "import os\nos.kill($host, 0)\nprint('ESCAPED')"),
    Probe("kills a process", "import os\nos.kill($victim, 9)\nprint('ESCAPED')"),
    Probe("signals everything", "import os\nos.kill(-1, 0)\nprint('ESCAPED')"),
    Probe(
        "limits another process",
        "import resource\nresource.prlimit($victim, resource.RLIMIT_CPU, (1, 1))\nprint('ESCAPED')",
    ),
    Probe("uses rights of root", "import os\nos.setuid(4321)\nprint('ESCAPED')", "process"),
    Probe("truncates outside", "import os\nos.truncate('$secret_file', 0)\nprint('ESCAPED')"),
    Probe(
        "datagram to a socket in the file system",
        "from socket import *\na, _ = socketpair(AF_UNIX, SOCK_DGRAM)\na.sendto(b'x', '$unix_datagrams')",
    ),
    Probe(
        "datagram to an abstract socket",
        "from socket import *\na, _ = socketpair(AF_UNIX, SOCK_DGRAM)\na.sendto(b'x', '\\0$abstract-datagrams')",
    ),
    Probe(
        "descriptors in a datagram",
        "import array, os\nfrom socket import *\na, _ = socketpair(AF_UNIX, SOCK_DGRAM)\n"
        "a.sendmsg([b'x'], [(SOL_SOCKET, SCM_RIGHTS, array.array('i', os.pipe()))], 0, '$unix_datagrams')",
    ),
    Probe(
        "has a socket signal a process",
        "import fcntl, socket, struct, time\na, b = socket.socketpair()\n"
        "fcntl.ioctl(a, 0x8901, struct.pack('i', $victim))\nfcntl.ioctl(a, 0x5452, struct.pack('i', 1))\n"
        "b.send(b'x')\ntime.sleep(0.2)",
    ),
    Probe("writes into the standard library", "import os\nopen(os.__file__, 'a').close()\nprint('ESCAPED')"),
    Probe(
        "sees that files exist",
        "import os\npaths = '$secret_file', '$package', '/etc/passwd', '/proc/$host'\n"
        "print('ESCAPED' if any(map(os.path.exists, paths)) else '')",
        "isolated",
    ),
    Probe(
        "sees which packages are installed",
        "import os, sysconfig\npath = os.path.join(sysconfig.get_paths()['purelib'], 'pip')\n"
        "print('ESCAPED' if os.path.exists(path) else '')",
        "isolated",
    ),
    Probe(
        "enters a folder outside", "import os\nos.chdir(os.path.dirname('$secret_file'))\nprint('ESCAPED')", "isolated"
    ),
    Probe(
        "leaves its root",
        "import os\nfor _ in range(9): os.chdir('..')\nprint('ESCAPED' if os.path.exists('etc/passwd') else '')",
        "isolated",
    ),
)
