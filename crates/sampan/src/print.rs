//! Output as the ecosystem prints it: columns separated by three spaces, nothing drawn.

/// Rows of cells as aligned columns, each row on a line.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// A size for people: `12.3MB`.
pub fn bytes(size: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut amount, mut unit) = (size as f64, 0);
    while amount >= 1000.0 && unit + 1 < UNITS.len() {
        amount /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{size}B")
    } else {
        format!("{amount:.1}{}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_have_no_tail() {
        let rows = [
            vec!["NAME".to_owned(), "X".to_owned()],
            vec!["a".to_owned(), "longer".to_owned()],
        ];
        assert_eq!(columns(&rows), "NAME   X\na      longer\n");
    }

    #[test]
    fn sizes_are_decimal() {
        assert_eq!(
            [bytes(999), bytes(1500), bytes(12_345_678)],
            ["999B", "1.5kB", "12.3MB"]
        );
    }
}
