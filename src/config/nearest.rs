//! Finds the word that somebody probably meant.

/// Longer than any word that is known, and than any that is meant for one; comparing takes time and room for each letter.
const LONGEST: usize = 200;

/// The candidate closest to `word`, if it is close enough to be worth naming.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let limit = (word.chars().count() / 3).max(2);
    let candidates: Vec<&str> = candidates.into_iter().collect();
    if let Some(begun) = candidates.iter().find(|c| word.len() >= 3 && c.starts_with(word)) {
        return Some(begun);
    }
    let (distance, best) = candidates.into_iter().map(|c| (distance(word, c), c)).min_by_key(|(d, _)| *d)?;
    (distance <= limit && distance < best.chars().count()).then_some(best)
}

/// `; the nearest known one is "x"`, or nothing: the end of a message about an unknown word.
pub fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map(|best| format!("; the nearest known one is \"{best}\"")).unwrap_or_default()
}

/// How many letters must be inserted, removed, replaced or swapped with their neighbour to make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("a", "", 1),
            ("index", "index", 0),
            ("idnex", "index", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn names_the_nearest_word_only_when_it_is_near() {
        let words = ["template", "index", "durability"];
        assert_eq!(nearest("tempalte", words), Some("template"));
        assert_eq!(nearest("durabilty", words), Some("durability"));
        assert_eq!(nearest("zzzzzz", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest(&"index".repeat(100_000), words), None);
        assert_eq!(nearest("dura", words), Some("durability"));
        assert_eq!(suggestion("indx", words), "; the nearest known one is \"index\"");
    }
}
