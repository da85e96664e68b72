//! strace's record: the system calls that write, name and sync files, each with its begin and its end.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Everything that could change a file, whether the store uses it or not: what is not understood must
/// be noticed.
pub(super) const CALLS: &str = "trace=open,openat,creat,lseek,write,writev,pwrite64,pwritev,pwritev2,\
    ftruncate,truncate,fallocate,copy_file_range,sendfile,fsync,fdatasync,sync_file_range,sync,syncfs,\
    msync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat";

/// What happened next.
pub(super) enum Step {
    Call(Call),
    /// The writer said this on its standard output.
    Says(String),
}

/// The begin or the end of a system call.
pub(super) struct Call {
    /// Who calls: one thread, one call at a time.
    pub(super) thread: u32,
    pub(super) name: String,
    pub(super) args: Args,
    /// What it returned; none at its begin.
    pub(super) result: Option<i64>,
}

/// A call's arguments as strace writes them.
#[derive(Clone, Debug)]
pub(super) struct Args(String);

impl Args {
    /// The n-th argument.
    pub(super) fn text(&self, index: usize) -> &str {
        self.0.split(", ").nth(index).unwrap_or_else(|| panic!("no argument {index} in {:.200}", self.0))
    }

    pub(super) fn number(&self, index: usize) -> u64 {
        self.text(index).parse().unwrap_or_else(|_| panic!("{:.200}", self.text(index)))
    }

    /// A descriptor and the path of what is open there.
    pub(super) fn file(&self, index: usize) -> (i32, PathBuf) {
        let (number, path) = self.text(index).split_once('<').expect("-y shows paths");
        (number.parse().unwrap(), text(path.split('>').next().unwrap()).into())
    }

    pub(super) fn bytes(&self, index: usize) -> Vec<u8> {
        unescape(self.text(index).trim_matches('"'))
    }

    pub(super) fn path(&self, index: usize) -> PathBuf {
        String::from_utf8(self.bytes(index)).unwrap().into()
    }

    /// Whether this folder is mentioned.
    pub(super) fn mention(&self, folder: &Path) -> bool {
        self.0.contains(&escape(folder))
    }
}

/// Reads a record.
pub(super) fn steps(record: &Path) -> Vec<Step> {
    let record = fs::read_to_string(record).unwrap();
    let mut unfinished: HashMap<u32, (String, Args)> = HashMap::new();
    let mut steps = Vec::new();
    for line in record.lines() {
        let (thread, line) = line.trim_start().split_once(' ').unwrap();
        let (thread, line) = (thread.parse().unwrap(), line.trim_start());
        if line.starts_with("+++") || line.starts_with("---") {
        } else if let Some(rest) = line.strip_prefix("<... ") {
            let begun = unfinished.remove(&thread).expect("what resumes was unfinished");
            steps.push(end(thread, begun, result(rest)));
        } else if let Some(begun) = line.strip_suffix(" <unfinished ...>") {
            steps.extend(begin(thread, parse(begun)));
            unfinished.insert(thread, parse(begun));
        } else {
            let call = parse(line.rsplit_once(" = ").expect("a result").0.trim_end().trim_end_matches(')'));
            steps.extend(begin(thread, call.clone()));
            steps.push(end(thread, call, result(line)));
        }
    }
    steps
}

fn begin(thread: u32, (name, args): (String, Args)) -> Option<Step> {
    let says = says(&name, &args);
    (!says).then_some(Step::Call(Call { thread, name, args, result: None }))
}

fn end(thread: u32, (name, args): (String, Args), result: i64) -> Step {
    if says(&name, &args) {
        return Step::Says(String::from_utf8(args.bytes(1)).unwrap());
    }
    Step::Call(Call { thread, name, args, result: Some(result) })
}

/// Whether it writes to the standard output.
fn says(name: &str, args: &Args) -> bool {
    name == "write" && args.text(0).starts_with("1<")
}

fn parse(call: &str) -> (String, Args) {
    let (name, args) = call.split_once('(').expect("a call has arguments");
    (name.to_owned(), Args(args.to_owned()))
}

/// `… = 9<path>`, `… = -1 EEXIST (File exists)`, `… = ?`
fn result(line: &str) -> i64 {
    let (_, result) = line.rsplit_once(" = ").expect("a call that ended has a result");
    let end = result.find(|char: char| char != '-' && !char.is_ascii_digit()).unwrap_or(result.len());
    result[..end].parse().unwrap_or(-1)
}

/// `\x2f\x74…` as strace writes it with -xx.
fn escape(path: &Path) -> String {
    path.to_str().unwrap().bytes().map(|byte| format!("\\x{byte:02x}")).collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\\' | b'x')).collect();
    hex::decode(digits).unwrap_or_else(|_| panic!("not escaped with -xx: {text:.200}"))
}

fn text(escaped: &str) -> String {
    String::from_utf8_lossy(&unescape(escaped)).into_owned()
}
