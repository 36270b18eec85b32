//! Names of sensors with `*` in them.

/// Whether `name` fits `pattern`, in which `*` stands for any run of characters, also an empty one.
pub fn fits(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| fits(tail, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, expected) in [
            ("tick.cpu*", "tick.cpu0", true),
            ("tick.cpu*", "tick.cpu", true),
            ("tick.cpu*", "xtick.cpu0", false),
            ("*.cpu1", "switches.cpu1", true),
            ("*.cpu1", "switches.cpu11", false),
            ("a*b*c", "a-b-b-c", true),
            ("forks", "forks", true),
            ("forks", "forks2", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} against {name}");
        }
    }
}
