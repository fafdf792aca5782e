//! Columns for people: a line of headings, cells padded to the widest.

/// A table being filled.
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    numbers_from: usize,
}

impl Table {
    /// With these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table {
            headings: headings.iter().map(|heading| (*heading).to_owned()).collect(),
            rows: Vec::new(),
            numbers_from: usize::MAX,
        }
    }

    /// Columns from this one on hold numbers and are aligned to the right.
    pub fn numbers_from(mut self, column: usize) -> Table {
        self.numbers_from = column;
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| crate::ui::one_line(&cell, 200)).collect());
    }

    /// The whole as text, a line a row.
    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.chain(self.headings.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                let gap = " ".repeat(width - cell.chars().count());
                let number = column >= self.numbers_from
                    && (cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit()) || cells == self.headings);
                if number { format!("{gap}{cell}") } else { format!("{cell}{gap}") }
            });
            let joined: Vec<String> = padded.collect();
            format!("{}\n", joined.join("  ").trim_end())
        };
        std::iter::once(&self.headings).chain(&self.rows).map(|cells| line(cells)).collect()
    }
}
