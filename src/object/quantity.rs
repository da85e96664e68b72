//! Kubernetes quantities of bytes: `256Mi`, `1.5Gi`, `500M`, `1048576`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(u64);

const SUFFIXES: [(&str, u64); 10] = [
    ("Ei", 1 << 60),
    ("Pi", 1 << 50),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl Quantity {
    /// That many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Quantity(bytes)
    }

    /// That many mebibytes.
    pub const fn mebibytes(mebibytes: u64) -> Self {
        Quantity(mebibytes << 20)
    }

    /// In bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Quantity {
    type Err = String;

    /// Digits with an optional decimal fraction and one suffix. The result must be whole bytes.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is not a quantity of bytes; write for example 256Mi or 2Gi");
        let (number, unit) = SUFFIXES
            .iter()
            .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
            .unwrap_or((text, 1));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.len() <= 20 && part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 18 {
            return Err(refuse());
        }
        let whole: u128 = whole.parse().map_err(|_| refuse())?;
        let scale = 10_u128.pow(fraction.len() as u32);
        let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| refuse())? };
        let scaled = whole
            .checked_mul(scale)
            .and_then(|whole| (whole + part).checked_mul(u128::from(unit)))
            .ok_or_else(refuse)?;
        if scaled % scale != 0 {
            return Err(format!("{text:?} is not a whole number of bytes"));
        }
        u64::try_from(scaled / scale).map(Quantity).map_err(|_| format!("{text:?} is more than 16Ei"))
    }
}

/// The canonical form: the largest binary suffix that leaves a whole number.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SUFFIXES.iter().filter(|(suffix, _)| suffix.ends_with('i'));
        for (suffix, unit) in binary {
            if self.0 != 0 && self.0.is_multiple_of(*unit) {
                return write!(f, "{}{suffix}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a quantity of bytes, for example 256Mi")]
        enum Form<'a> {
            Number(u64),
            Text(Cow<'a, str>),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(bytes) => Ok(Quantity(bytes)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes: digits with an optional suffix (Ki, Mi, Gi, Ti, k, M, G, T).",
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T)?$"}],
            "x-kubernetes-int-or-string": true
        })
    }
}
