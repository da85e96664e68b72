//! Maps of sparse files (GNU tar manual, "Storing Sparse Files").

use std::io::BufRead;

use crate::image::limits::check;
use crate::image::{ImageError, Limits};

/// A piece of a sparse file that is data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A map that was checked: segments ascend without overlap and end within the file.
#[derive(Debug, PartialEq)]
pub(crate) struct SparseMap {
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
}

impl SparseMap {
    /// Checks a map against the file's length and the bytes of data that the archive holds.
    pub(super) fn new(
        size: u64,
        mut segments: Vec<Segment>,
        stored: u64,
        limits: &Limits,
    ) -> Result<Self, ImageError> {
        check(
            "the number of segments of a sparse file",
            "sparse_segments",
            segments.len(),
            limits.sparse_segments,
        )?;
        let bad = |what: &str| ImageError::invalid(format!("the map of a sparse file is wrong: {what}"));
        segments.retain(|segment| segment.length > 0);
        let (mut end, mut total) = (0u64, 0u64);
        for Segment { offset, length } in &segments {
            if *offset < end {
                return Err(bad("segments overlap or are out of order"));
            }
            end = offset
                .checked_add(*length)
                .filter(|end| *end <= size)
                .ok_or_else(|| bad("it passes the file's end"))?;
            // Cannot overflow: segments do not overlap.
            total += length;
        }
        if total != stored {
            return Err(bad("it does not fit the data"));
        }
        Ok(SparseMap { size, segments })
    }
}

/// Reads the map of format 1.0 off the start of the data: decimal numbers, a line each, first how
/// many segments, then offset and length of each. Returns it and the bytes it took.
pub(super) fn read_map(
    reader: &mut impl BufRead,
    limits: &Limits,
) -> Result<(Vec<Segment>, u64), ImageError> {
    let mut taken = 0;
    let count = read_number(reader, &mut taken)?;
    let bound = limits.sparse_segments as u64;
    check("the number of segments of a sparse file", "sparse_segments", count, bound)?;
    let mut segments = Vec::new();
    for _ in 0..count {
        let offset = read_number(reader, &mut taken)?;
        let length = read_number(reader, &mut taken)?;
        segments.push(Segment { offset, length });
    }
    Ok((segments, taken))
}

fn read_number(reader: &mut impl BufRead, taken: &mut u64) -> Result<u64, ImageError> {
    let bad = || ImageError::invalid("the map of a sparse file is malformed");
    let mut value = 0u64;
    loop {
        let buffer =
            reader.fill_buf().map_err(|error| ImageError::from_read("reading a sparse map", error))?;
        let byte = *buffer.first().ok_or_else(bad)?;
        reader.consume(1);
        *taken += 1;
        match byte {
            b'\n' => return Ok(value),
            b'0'..=b'9' => {
                let digit = u64::from(byte - b'0');
                value = value.checked_mul(10).and_then(|value| value.checked_add(digit)).ok_or_else(bad)?;
            }
            _ => return Err(bad()),
        }
    }
}
