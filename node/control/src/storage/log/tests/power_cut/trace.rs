//! The system calls of a process that change files or make them durable, as `strace` records them.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::Command;

use super::*;

/// All calls by which a process can change files or folders, make them durable, or get and give up descriptors of them. A
/// call that nothing here understands fails the test: it could have changed what the model does not know.
const CALLS: &str = "open,creat,openat,openat2,close,close_range,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,\
                     pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,fsync,fdatasync,\
                     sync,syncfs,sync_file_range,msync,mmap,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,\
                     rmdir,link,linkat,symlink,symlinkat,io_uring_setup,io_submit";

/// The command before a program by which its calls are recorded in `file`: contents whole, and in hexadecimal.
pub(super) fn recorder(file: &str) -> Vec<String> {
    let words = ["strace", "-f", "--seccomp-bpf", "-qq", "-xx", "-s", "16777216", "-o", file, "-e"];
    let calls = format!("trace={CALLS}");
    words.into_iter().chain([calls.as_str()]).map(str::to_owned).collect()
}

/// Whether there is a `strace`, and it may trace; says loudly if not.
pub(super) fn can_record() -> bool {
    let works =
        Command::new("strace").args(["-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "true"]).output();
    let works = works.is_ok_and(|output| output.status.success());
    if !works {
        // Past the test harness, which keeps what a test that passes says to itself.
        let said = "SKIPPED: simulated power cuts need strace (on Debian: apt-get install strace), and leave to trace\n";
        io::stderr().write_all(said.as_bytes()).unwrap();
    }
    works
}

/// A file or folder that a call names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// The open folder that the path begins in, if it is relative.
    pub base: Option<i32>,
    pub path: String,
}

/// What a call does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Open {
        name: Name,
        flags: String,
    },
    Close(i32),
    Duplicate(i32),
    /// The position of a descriptor becomes what the call returns.
    Seek(i32),
    Write {
        fd: i32,
        data: Vec<u8>,
        at: Option<u64>,
    },
    Resize {
        fd: i32,
        len: u64,
    },
    Sync(i32),
    Rename {
        from: Name,
        to: Name,
    },
    Unlink(Name),
    MakeFolder(Name),
    RemoveFolder(Name),
    /// Nothing that lasts.
    Nothing,
    /// What would have to be modelled if it were done to a file of the store.
    Unknown(Vec<i32>),
}

/// A system call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub act: Act,
    /// None: the process ended before it did.
    pub result: Option<i64>,
    /// As it was recorded, but for its contents.
    pub text: String,
}

/// A point in time; the number is the call's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// From now on it may have an effect.
    Begin(usize),
    /// It has returned.
    End(usize),
}

/// A recording.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub calls: Vec<Call>,
    pub moments: Vec<Moment>,
}

impl Trace {
    /// Reads what `strace` wrote. Panics at the first line that is not understood.
    pub(super) fn parse(text: &str) -> Self {
        let mut trace = Self::default();
        // By thread: the number of its call, and the beginning of it.
        let mut unfinished: HashMap<&str, (usize, &str)> = HashMap::new();
        for line in text.lines() {
            let (thread, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            let rest = rest.trim_start();
            if rest.starts_with("+++ ") || rest.starts_with("--- ") {
                // It ended, or got a signal.
            } else if let Some(resumed) = rest.strip_prefix("<... ") {
                let (number, begun) = unfinished.remove(thread).unwrap_or_else(|| panic!("{line:.200}"));
                let (_, end) = resumed.split_once(" resumed>").unwrap_or_else(|| panic!("{line:.200}"));
                trace.calls[number] = Call::parse(&format!("{begun}{end}"));
                trace.moments.push(Moment::End(number));
            } else {
                let number = trace.calls.len();
                trace.moments.push(Moment::Begin(number));
                if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
                    // Until it is resumed: a call that never returned.
                    trace.calls.push(Call::parse(&format!("{begun}) = ?")));
                    assert!(unfinished.insert(thread, (number, begun)).is_none(), "{line:.200}");
                } else {
                    trace.calls.push(Call::parse(rest));
                    trace.moments.push(Moment::End(number));
                }
            }
        }
        trace
    }
}

impl Call {
    /// Parses `name(arguments) = result`.
    fn parse(text: &str) -> Self {
        let unreadable = || -> ! { panic!("strace wrote what the test does not understand: {text:.300}") };
        let Some((call, result)) = text.rsplit_once(" = ") else { unreadable() };
        let Some((name, arguments)) = call.trim_end().split_once('(') else { unreadable() };
        let arguments = arguments.strip_suffix(')').unwrap_or(arguments);
        let result = match result.split(' ').next() {
            Some("?") => None,
            Some(number) => match number.strip_prefix("0x") {
                Some(digits) => i64::from_str_radix(digits, 16).ok(),
                None => number.parse().ok(),
            }
            .map_or_else(|| unreadable(), Some),
            None => unreadable(),
        };
        let arguments = Arguments { all: arguments.split(", ").collect(), text };
        Self { act: arguments.act(name), result, text: text.chars().take(200).collect() }
    }
}

struct Arguments<'a> {
    /// Strings are in hexadecimal, so a comma ends an argument, or a part of a structure that nobody asks for.
    all: Vec<&'a str>,
    text: &'a str,
}

impl Arguments<'_> {
    fn act(&self, name: &str) -> Act {
        match name {
            "openat" => Act::Open { name: self.name(0), flags: self.at(2).to_owned() },
            "open" => Act::Open { name: self.path(0), flags: self.at(1).to_owned() },
            "close" => Act::Close(self.number(0)),
            "dup" => Act::Duplicate(self.number(0)),
            "fcntl" if self.at(1).starts_with("F_DUPFD") => Act::Duplicate(self.number(0)),
            "lseek" => Act::Seek(self.number(0)),
            "write" => Act::Write { fd: self.number(0), data: self.data(1), at: None },
            "pwrite64" => Act::Write { fd: self.number(0), data: self.data(1), at: Some(self.number(3)) },
            "ftruncate" => Act::Resize { fd: self.number(0), len: self.number(1) },
            "fsync" | "fdatasync" => Act::Sync(self.number(0)),
            "rename" => Act::Rename { from: self.path(0), to: self.path(1) },
            "renameat" => Act::Rename { from: self.name(0), to: self.name(2) },
            "renameat2" if self.at(4) == "0" => Act::Rename { from: self.name(0), to: self.name(2) },
            "unlink" => Act::Unlink(self.path(0)),
            "unlinkat" if self.at(2) == "0" => Act::Unlink(self.name(0)),
            "unlinkat" if self.at(2) == "AT_REMOVEDIR" => Act::RemoveFolder(self.name(0)),
            "mkdir" => Act::MakeFolder(self.path(0)),
            "mkdirat" => Act::MakeFolder(self.name(0)),
            "rmdir" => Act::RemoveFolder(self.path(0)),
            // It starts to write, and waits for that, but not for the disk's cache nor for what leads to the data.
            "fcntl" | "sync_file_range" => Act::Nothing,
            "mmap" => match (self.at(3).contains("MAP_SHARED"), self.at(2).contains("PROT_WRITE")) {
                (true, true) => Act::Unknown(vec![self.number(4)]),
                _ => Act::Nothing,
            },
            "writev" | "pwritev" | "pwritev2" | "fallocate" => Act::Unknown(vec![self.number(0)]),
            other => panic!("the model of the disk does not know {other}: {:.300}", self.text),
        }
    }

    fn at(&self, place: usize) -> &str {
        self.all.get(place).unwrap_or_else(|| panic!("it has too few arguments: {:.300}", self.text))
    }

    fn number<T: std::str::FromStr>(&self, place: usize) -> T {
        self.at(place).parse().unwrap_or_else(|_| panic!("argument {place} is no number: {:.300}", self.text))
    }

    fn path(&self, place: usize) -> Name {
        Name { base: None, path: String::from_utf8(self.data(place)).unwrap() }
    }

    fn name(&self, place: usize) -> Name {
        let base = if self.at(place) == "AT_FDCWD" { None } else { Some(self.number(place)) };
        Name { base, ..self.path(place + 1) }
    }

    /// A string, as `"\x61\x62"`; one that was cut off has dots behind it.
    fn data(&self, place: usize) -> Vec<u8> {
        let whole = self.at(place).strip_prefix('"').and_then(|text| text.strip_suffix('"'));
        let digits =
            whole.unwrap_or_else(|| panic!("argument {place} is no whole string: {:.300}", self.text));
        let value = |digit: u8| match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => panic!("{} is no hexadecimal digit: {:.300}", char::from(digit), self.text),
        };
        let byte = |escaped: &[u8]| value(escaped[2]) << 4 | value(escaped[3]);
        assert_eq!(digits.len() % 4, 0, "{:.300}", self.text);
        digits.as_bytes().chunks_exact(4).map(byte).collect()
    }
}

#[test]
fn a_call_that_is_interrupted_by_others_begins_and_ends_where_it_did() {
    let text = "7 fdatasync(3 <unfinished ...>\n\
                8 pwrite64(4, \"\\x61\\x62\", 2, 96) = 2\n\
                7 <... fdatasync resumed>) = 0\n\
                8 --- SIGCHLD {si_signo=SIGCHLD} ---\n\
                8 rename(\"\\x61\", \"\\x62\") = -1 ENOENT (No such file or directory)\n\
                9 write(1, \"\\x0a\", 1 <unfinished ...>\n\
                9 +++ exited with 0 +++\n";
    let trace = Trace::parse(text);
    let order = [(0, true), (1, true), (1, false), (0, false), (2, true), (2, false), (3, true)];
    let order = order.map(|(call, begins)| if begins { Moment::Begin(call) } else { Moment::End(call) });
    assert_eq!(trace.moments, order);
    let results: Vec<_> = trace.calls.iter().map(|call| call.result).collect();
    assert_eq!(results, [Some(0), Some(2), Some(-1), None]);
    assert_eq!(trace.calls[0].act, Act::Sync(3));
    assert_eq!(trace.calls[1].act, Act::Write { fd: 4, data: b"ab".to_vec(), at: Some(96) });
}

#[test]
#[should_panic(expected = "the model of the disk does not know copy_file_range")]
fn a_call_that_is_not_known_is_not_passed_over() {
    Trace::parse("7 copy_file_range(3, NULL, 4, NULL, 10, 0) = 10\n");
}
