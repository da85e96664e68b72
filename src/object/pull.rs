//! How far a pull is: numbers for programs, a line for people.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far a pull is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullProgress {
    /// Layers of the image; 0 until its manifest is read.
    pub layers: u32,
    /// Layers that are in the disk.
    pub layers_done: u32,
    /// Compressed bytes of all layers.
    pub bytes: u64,
    /// Compressed bytes that have arrived.
    pub bytes_done: u64,
    /// Bytes that arrive a second, over the last seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

impl PullProgress {
    /// How much of it is done.
    pub fn percent(&self) -> u64 {
        let done = u128::from(self.bytes_done) * 100;
        done.checked_div(u128::from(self.bytes)).map_or(100, |percent| percent.min(100) as u64)
    }
}

/// `layer 3 of 4, 61 %, 34 MiB/s`
impl fmt::Display for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.layers == 0 {
            return f.write_str("reading the manifest");
        }
        let layer = (self.layers_done + 1).min(self.layers);
        write!(f, "layer {layer} of {}, {} %", self.layers, self.percent())?;
        self.bytes_per_second.map_or(Ok(()), |rate| write!(f, ", {}/s", Bytes(rate)))
    }
}

/// A number of bytes as people read it: three digits at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// `34 MiB`, `1.2 GiB`, `0 B`
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let (mut tenths, mut unit) = (u128::from(self.0) * 10, 0);
        // 1000 of a unit are written as one of the next: three digits are enough.
        while (tenths + 5) / 10 >= 1000 {
            tenths = tenths.div_ceil(1024);
            unit += 1;
        }
        let text = match tenths {
            _ if unit == 0 => format!("{} B", self.0),
            0..100 => format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]),
            _ => format!("{} {}", (tenths + 5) / 10, UNITS[unit]),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1024, "1.0 KiB"),
            (34 << 20, "34 MiB"),
            ((12 << 30) / 10, "1.2 GiB"),
            (1023 << 20, "1.0 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text, "{bytes}");
        }
    }

    #[test]
    fn progress_for_people() {
        let mut progress = PullProgress::default();
        assert_eq!(progress.to_string(), "reading the manifest");
        progress =
            PullProgress { layers: 4, layers_done: 2, bytes: 100, bytes_done: 61, bytes_per_second: None };
        assert_eq!(progress.to_string(), "layer 3 of 4, 61 %");
        progress.bytes_per_second = Some(34 << 20);
        assert_eq!(progress.to_string(), "layer 3 of 4, 61 %, 34 MiB/s");
        progress = PullProgress { layers_done: 4, bytes: 0, ..progress };
        assert_eq!(progress.to_string(), "layer 4 of 4, 100 %, 34 MiB/s");
    }
}
