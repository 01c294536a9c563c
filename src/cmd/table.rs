//! Tables for people: columns as wide as their widest cell, two spaces apart; and how their cells show numbers.

/// Lay out `rows` below `header`. Cells that are numbers in each row are set to the right; no line ends in
/// spaces, each ends in a newline.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let columns: Vec<Column> = header
        .iter()
        .enumerate()
        .map(|(i, title)| Column::measure(title, rows.iter().filter_map(|r| r.get(i))))
        .collect();
    let mut out = String::new();
    let titles: Vec<String> = header.iter().map(|t| t.to_string()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let cells: Vec<String> = columns.iter().zip(row).map(|(c, cell)| c.pad(cell)).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A number of bytes in three digits: `512B`, `1.5K`, `23M`.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "K", "M", "G", "T"] {
        // Below what would round up to the next unit.
        if value < 999.5 {
            let decimals = usize::from(value < 9.95 && unit != "B");
            return format!("{value:.decimals$}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.0}P")
}

/// A time span in its largest unit: `45s`, `12m`, `3h`, `9d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

struct Column {
    width: usize,
    numeric: bool,
}

impl Column {
    fn measure<'a>(title: &str, cells: impl Iterator<Item = &'a String>) -> Column {
        let mut column = Column {
            width: title.chars().count(),
            numeric: true,
        };
        let mut any = false;
        for cell in cells {
            any = true;
            column.width = column.width.max(cell.chars().count());
            column.numeric &=
                cell.starts_with(|c: char| c.is_ascii_digit()) && cell.parse::<f64>().is_ok() || cell == "-";
        }
        column.numeric &= any;
        column
    }

    fn pad(&self, cell: &str) -> String {
        let width = self.width;
        if self.numeric {
            format!("{cell:>width$}")
        } else {
            format!("{cell:<width$}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["default/a".into(), "7".into(), "x".into()],
            vec!["b".into(), "1200".into(), "".into()],
        ];
        let expected = "POD        FRAMES  NOTE\n\
                        default/a       7  x\n\
                        b            1200\n";
        assert_eq!(table(&["POD", "FRAMES", "NOTE"], &rows), expected);
        assert_eq!(table(&["POD", "N"], &[]), "POD  N\n");
    }

    #[test]
    fn numbers_stay_short() {
        let shown: Vec<_> = [0, 512, 1536, 24_117_248, u64::MAX].map(bytes).into();
        assert_eq!(shown, ["0B", "512B", "1.5K", "23M", "16384P"]);
        let ages: Vec<_> = [0, 59, 60, 7200, 900_000].map(age).into();
        assert_eq!(ages, ["0s", "59s", "1m", "2h", "10d"]);
    }
}
