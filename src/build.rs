//! Builds the guest.

fn main() {}
