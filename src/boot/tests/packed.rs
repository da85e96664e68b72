//! Kernels, however they are packed, and of any bytes.

use super::*;

#[test]
fn kernels_are_unpacked_whatever_they_are_packed_with() {
    let inner = elf(&note(PVH), &[]);
    for packer in PACKERS {
        let packed = pack(packer, &inner);
        let kernel = bzimage(&packed, inner.len(), "6.1.0-9");
        assert_eq!(*unpack::elf(&kernel).expect(packer[0]), *inner, "{packer:?}");
        assert_eq!(unpack::release(&kernel), Some("6.1.0-9"));
        for wrong in [inner.len() - 1, inner.len() + 1, usize::try_from(u32::MAX).expect("64 bits"), 0] {
            assert!(unpack::elf(&bzimage(&packed, wrong, "6")).is_err(), "{packer:?} of {wrong} bytes");
        }
        let cut = bzimage(&packed[..packed.len() / 2], inner.len(), "6");
        assert!(unpack::elf(&cut).is_err(), "{packer:?} cut off");
    }
    assert_eq!(*unpack::elf(&inner).expect("as it is"), *inner);
    for (magic, name) in [(&b"BZh91AY&SY"[..], "bzip2"), (b"\x89LZO\0\r\n\x1a\n1", "lzo")] {
        let other = unpack::elf(&bzimage(magic, 100, "6")).expect_err("not supported");
        assert!(other.contains(&format!("packed with {name}; gzip, xz, lzma, zstd and lz4 can")), "{other}");
    }
    let text = unpack::elf(&bzimage(&pack(PACKERS[0], b"no kernel at all"), 16, "6")).expect_err("text");
    assert!(text.contains("no 64-bit ELF"), "{text}");
}

#[test]
fn a_pvh_entry_is_seen_behind_other_notes() {
    assert!(unpack::has_pvh_entry(&elf(&note(PVH), &[])));
    assert!(!unpack::has_pvh_entry(&elf(&note(17), &[])));
    assert!(!unpack::has_pvh_entry(&elf(&[0xff; 40], &[])));
}

proptest! {
    #[test]
    fn kernels_of_any_bytes_are_survived(
        at in 0usize..0x400, bytes in proptest::collection::vec(any::<u8>(), 1..16), cut in 0usize..4000
    ) {
        let mut kernel = bzimage(&[0x02, 0x21, 0x4c, 0x18, 1, 0, 0, 0, 0], 10, "6.1");
        kernel[at..(at + bytes.len()).min(0x400)].copy_from_slice(&bytes[..bytes.len().min(0x400 - at)]);
        kernel.truncate(cut);
        let _ = (unpack::elf(&kernel), unpack::release(&kernel), unpack::has_pvh_entry(&kernel));
        let mut elf = elf(&note(PVH), &[]);
        elf.truncate(200);
        let place = at % 150;
        elf[place..(place + bytes.len()).min(200)].copy_from_slice(&bytes[..bytes.len().min(200 - place)]);
        let _ = unpack::has_pvh_entry(&elf);
    }
}
