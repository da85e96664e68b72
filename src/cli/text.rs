//! Text of others on a terminal.

use std::borrow::Cow;

/// The text without characters that a terminal acts upon: messages may carry what a guest or a
/// registry wrote.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .map(|character| match character {
            '\n' | '\t' => ' ',
            character if character.is_control() => char::REPLACEMENT_CHARACTER,
            character => character,
        })
        .collect()
}
