//! How a variable is written: C, as far as it leads to one number.
//!
//! ```text
//!   (struct user_namespace)init_user_ns.ucount_max[UCOUNT_PID_NAMESPACES]
//!   └──── type, if needed ─┘└─ symbol ─┘└─ member ┘└─── index: a number or an enumerator ┘
//! ```
//! `->` follows a pointer.

use super::VariableError;

/// Longest text of a variable.
const TEXT_BYTES_MAX: usize = 256;

/// Steps from a symbol to a number.
pub(super) const STEPS_MAX: usize = 16;

/// A variable as written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Expression {
    /// The type of the symbol, where the text says it.
    pub of_type: Option<String>,
    pub symbol: String,
    pub steps: Vec<Step>,
}

/// One step down from a symbol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// `.name`
    Member(String),
    /// `->name`
    Follow(String),
    /// `[3]`
    Index(u64),
    /// `[OOM_KILL]`
    Enumerator(String),
}

impl Expression {
    pub(super) fn parse(text: &str) -> Result<Self, VariableError> {
        let mut parser = Parser { text, rest: text.trim() };
        if text.len() > TEXT_BYTES_MAX {
            return Err(parser.wrong("at most 256 characters"));
        }
        let of_type = match parser.take("(") {
            true => Some(parser.type_name()?),
            false => None,
        };
        let symbol = parser.name("the name of a symbol")?;
        let mut steps = Vec::new();
        while !parser.rest.is_empty() {
            if steps.len() == STEPS_MAX {
                return Err(parser.wrong("an end after 16 steps"));
            }
            steps.push(parser.step()?);
        }
        Ok(Self { of_type, symbol, steps })
    }
}

struct Parser<'t> {
    text: &'t str,
    rest: &'t str,
}

impl Parser<'_> {
    fn wrong(&self, expected: &'static str) -> VariableError {
        VariableError::Syntax { text: self.text.to_owned(), rest: self.rest.to_owned(), expected }
    }

    fn take(&mut self, mark: &str) -> bool {
        let rest = self.rest.strip_prefix(mark);
        self.rest = rest.unwrap_or(self.rest).trim_start();
        rest.is_some()
    }

    fn name(&mut self, expected: &'static str) -> Result<String, VariableError> {
        let is_inside = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let (name, rest) = self.rest.split_at(self.rest.find(|it| !is_inside(it)).unwrap_or(self.rest.len()));
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(self.wrong(expected));
        }
        self.rest = rest.trim_start();
        Ok(name.to_owned())
    }

    fn type_name(&mut self) -> Result<String, VariableError> {
        let Some((name, rest)) = self.rest.split_once(')') else { return Err(self.wrong("a type and `)`")) };
        let words: Vec<&str> = name.split_whitespace().collect();
        if words.is_empty() {
            return Err(self.wrong("a type and `)`"));
        }
        self.rest = rest.trim_start();
        Ok(words.join(" "))
    }

    fn step(&mut self) -> Result<Step, VariableError> {
        if self.take("->") {
            return self.name("a member behind `->`").map(Step::Follow);
        }
        if self.take(".") {
            return self.name("a member behind `.`").map(Step::Member);
        }
        if !self.take("[") {
            return Err(self.wrong("`.member`, `->member` or `[index]`"));
        }
        let digits = self.rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(self.rest.len());
        let step = if digits == 0 {
            Step::Enumerator(self.name("a number or an enumerator behind `[`")?)
        } else {
            let (number, rest) = self.rest.split_at(digits);
            let number = number.parse().map_err(|_| self.wrong("a smaller number"))?;
            self.rest = rest.trim_start();
            Step::Index(number)
        };
        if self.take("]") { Ok(step) } else { Err(self.wrong("`]`")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_parts_of_a_variable_are_told_apart() {
        let found = Expression::parse("(struct  user_namespace) init_user_ns.ucount_max[ NR ] -> a[07].b").unwrap();
        let steps = vec![
            Step::Member("ucount_max".into()),
            Step::Enumerator("NR".into()),
            Step::Follow("a".into()),
            Step::Index(7),
            Step::Member("b".into()),
        ];
        let of_type = Some("struct user_namespace".into());
        assert_eq!(found, Expression { of_type, symbol: "init_user_ns".into(), steps });
    }

    #[test]
    fn what_is_wrong_is_named_with_the_place() {
        let check = |text: &str, expected: &str| {
            let said = Expression::parse(text).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        };
        check("", "the name of a symbol");
        check("9lives", "the name of a symbol, found `9lives`");
        check("a.", "a member behind `.`");
        check("a[b", "expected `]`");
        check("a[99999999999999999999]", "a smaller number");
        check("a b", "`.member`, `->member` or `[index]`, found `b`");
        check("(int", "a type and `)`");
        check(&format!("a{}", ".b".repeat(17)), "an end after 16 steps");
        check(&"a".repeat(257), "256 characters");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z0-9_.\\[\\]()> -]{0,40}|.{0,40}") {
            let _ = Expression::parse(&text);
        }
    }
}
