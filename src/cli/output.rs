//! Tables and colours.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde_json::Value;

use super::text::printable;
use crate::api::types::{Column, Row, Table};

/// Whether to colour what goes to a stream: only on a terminal, and not against the user's wish
/// (no-color.org).
pub(super) fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The forms of an answer that is no table (`-o`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    Text,
    Json,
}

/// Lays tables out as text.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// Also the columns that only wide output has.
    pub(super) wide: bool,
    /// A first column with the namespace.
    pub(super) namespace: bool,
    /// Put before each name: `vm/`.
    pub(super) prefix: String,
    /// Whether to colour.
    pub(super) colour: bool,
    columns: Vec<Column>,
    widths: Vec<usize>,
}

impl Layout {
    /// A layout with colours, if stdout is for them.
    pub(super) fn coloured() -> Self {
        Layout { colour: colour(&io::stdout()), ..Layout::default() }
    }

    /// Takes the columns of a table, if it brings any.
    pub(super) fn learn(&mut self, table: &Table) {
        if !table.column_definitions.is_empty() {
            self.columns.clone_from(&table.column_definitions);
        }
    }

    /// The headings.
    pub(super) fn header(&self) -> Vec<String> {
        let namespace = self.namespace.then(|| "NAMESPACE".to_owned());
        let shown = self.columns.iter().filter(|column| self.shows(column));
        namespace.into_iter().chain(shown.map(|column| column.name.to_uppercase())).collect()
    }

    /// A row's cells, as shown.
    pub(super) fn cells(&self, row: &Row) -> Vec<String> {
        let namespace = self
            .namespace
            .then(|| row.object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned());
        let cells = self.columns.iter().zip(&row.cells).filter(|(column, _)| self.shows(column));
        let cells = cells.map(|(column, cell)| match cell {
            Value::String(text) if column.format == "name" => format!("{}{}", self.prefix, printable(text)),
            Value::String(text) => printable(text).into_owned(),
            other => other.to_string(),
        });
        namespace.into_iter().chain(cells).collect()
    }

    /// Widens the columns for these lines. They never become narrower, so that a watch stays aligned.
    pub(super) fn fit<'a>(&mut self, lines: impl IntoIterator<Item = &'a Vec<String>>) {
        for line in lines {
            self.widths.resize(self.widths.len().max(line.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
    }

    /// One line of text.
    pub(super) fn line(&self, cells: &[String]) -> String {
        let mut line = String::new();
        for (index, cell) in cells.iter().enumerate() {
            let shown = if self.colour { paint(cell) } else { cell.clone() };
            line.push_str(&shown);
            if index + 1 < cells.len() {
                let width = self.widths.get(index).copied().unwrap_or(0).max(cell.chars().count());
                line.push_str(&" ".repeat(width - cell.chars().count() + 3));
            }
        }
        line
    }

    fn shows(&self, column: &Column) -> bool {
        self.wide || column.priority == 0
    }
}

/// Prints a whole table.
///
/// # Errors
/// When stdout does.
pub(super) fn print_table(out: &mut impl Write, layout: &mut Layout, table: &Table) -> io::Result<()> {
    layout.learn(table);
    let lines: Vec<Vec<String>> =
        std::iter::once(layout.header()).chain(table.rows.iter().map(|row| layout.cells(row))).collect();
    print_lines(out, layout, &lines)
}

/// Prints lines of cells, aligned.
///
/// # Errors
/// When stdout does.
pub(super) fn print_lines(
    out: &mut impl Write,
    layout: &mut Layout,
    lines: &[Vec<String>],
) -> io::Result<()> {
    layout.fit(lines);
    for cells in lines {
        writeln!(out, "{}", layout.line(cells).trim_end())?;
    }
    Ok(())
}

/// Colours the words that say how things are.
fn paint(cell: &str) -> String {
    let code = match cell {
        "True" | "Running" | "Ready" => 32,
        "Failed" | "Backoff" | "Warning" => 31,
        "Pending" | "Pulling" | "Starting" | "Stopping" | "Terminating" => 33,
        _ => return cell.to_owned(),
    };
    format!("\x1b[{code}m{cell}\x1b[0m")
}
