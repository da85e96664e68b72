//! The guest that this binary carries.

/// PID 1 of every VM: a static executable for this host's machine, built from `src/guest` by the build
/// script.
pub const GUEST: &[u8] = include_bytes!(env!("VMLET_GUEST"));

#[cfg(test)]
mod tests {
    #[test]
    fn the_guest_is_a_small_executable() {
        assert!(super::GUEST.starts_with(b"\x7fELF"));
        assert!(super::GUEST.len() < 3 << 19, "{} bytes are more than 1.5 MiB", super::GUEST.len());
    }
}
