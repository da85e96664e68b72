//! PID 1 of a vmlet VM.

fn main() {}
