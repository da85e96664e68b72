//! The one binary: parse the command line, call one runner, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Hidden modes, which the daemon starts this binary in, come before the command line:
    // `__gate` and `__kvm-probe` go here.
    vmlet::cli::main()
}
