//! Reads settings out of a TOML table one by one and collects every problem on the way.
//!
//! Serde stops at the first mistake. An operator who corrects a file wants all of them at once, each
//! with the setting's full name; so the reader takes each setting by name, notes what is wrong
//! and goes on. What nobody took is unknown, and an unknown setting is a mistake too: a misspelt
//! safety setting must not be ignored.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use toml::{Table, Value};

/// One thing wrong with a configuration: which setting, what is wrong, what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The full name, such as `volume.host_id`; of the second entry of a list, `peer.members[1].name`.
    pub setting: String,
    /// What is wrong and what to do about it.
    pub text: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { setting, text } = self;
        if setting.is_empty() {
            f.write_str(text)
        } else {
            write!(f, "{setting}: {text}")
        }
    }
}

/// One table of the configuration while it is being read.
pub(super) struct Section<'p> {
    /// `volume` for `[volume]`, empty for the top of the file.
    name: String,
    table: Table,
    /// Every name that was asked for, for the hint at a misspelt one.
    known: BTreeSet<String>,
    problems: &'p mut Vec<Problem>,
}

impl<'p> Section<'p> {
    /// The whole file.
    pub fn root(table: Table, problems: &'p mut Vec<Problem>) -> Self {
        Self {
            name: String::new(),
            table,
            known: BTreeSet::new(),
            problems,
        }
    }

    /// The full name of a setting in this section.
    pub fn path(&self, setting: &str) -> String {
        if self.name.is_empty() {
            setting.to_owned()
        } else {
            format!("{}.{setting}", self.name)
        }
    }

    /// Notes what is wrong with a setting.
    pub fn problem(&mut self, setting: &str, text: impl Display) {
        let setting = self.path(setting);
        self.problems.push(Problem {
            setting,
            text: text.to_string(),
        });
    }

    /// Takes the value as it is; none if it is not set.
    pub fn take(&mut self, setting: &str) -> Option<Value> {
        self.known.insert(setting.to_owned());
        self.table.remove(setting)
    }

    /// A setting that must be there; `example` is shown when it is not.
    pub fn required<T: Setting>(&mut self, setting: &'static str, example: &str) -> Option<T> {
        match self.take(setting) {
            Some(value) => self.read(setting, value),
            None => {
                self.problem(
                    setting,
                    format_args!("missing; for example {setting} = {example}"),
                );
                None
            }
        }
    }

    /// A setting that may be left out.
    pub fn optional<T: Setting>(&mut self, setting: &'static str, default: T) -> Option<T> {
        match self.take(setting) {
            Some(value) => self.read(setting, value),
            None => Some(default),
        }
    }

    fn read<T: Setting>(&mut self, setting: &str, value: Value) -> Option<T> {
        T::read(value)
            .map_err(|text| self.problem(setting, text))
            .ok()
    }

    /// The table `[name]`; noted as missing and read as empty when it is not there, so that the
    /// settings it lacks are named as well.
    pub fn section<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> Option<T>,
    ) -> Option<T> {
        let table = match self.take(name) {
            Some(Value::Table(table)) => table,
            None => Table::new(),
            Some(other) => {
                self.problem(
                    name,
                    format_args!("must be a table, [{name}], not {}", kind(&other)),
                );
                return None;
            }
        };
        let path = self.path(name);
        self.child(path, table, read)
    }

    /// The table `[name]`, which may be absent: `Some(None)`.
    pub fn optional_section<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> Option<T>,
    ) -> Option<Option<T>> {
        if self.table.contains_key(name) {
            self.section(name, read).map(Some)
        } else {
            self.known.insert(name.to_owned());
            Some(None)
        }
    }

    /// The tables `[[name]]`, none when absent.
    pub fn sections<T>(
        &mut self,
        name: &'static str,
        mut read: impl FnMut(&mut Section<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let entries = match self.take(name) {
            Some(Value::Array(entries)) => entries,
            None => Vec::new(),
            Some(other) => {
                let text = format!(
                    "must be a list of tables, [[{}]], not {}",
                    self.path(name),
                    kind(&other)
                );
                self.problem(name, text);
                return None;
            }
        };
        let mut all = Some(Vec::new());
        for (index, entry) in entries.into_iter().enumerate() {
            let path = format!("{}[{index}]", self.path(name));
            let one = match entry {
                Value::Table(table) => self.child(path, table, &mut read),
                other => {
                    self.problem(
                        &format!("{name}[{index}]"),
                        format_args!("must be a table, not {}", kind(&other)),
                    );
                    None
                }
            };
            all = all.zip(one).map(|(mut all, one)| {
                all.push(one);
                all
            });
        }
        all
    }

    fn child<T>(
        &mut self,
        name: String,
        table: Table,
        read: impl FnOnce(&mut Section<'_>) -> Option<T>,
    ) -> Option<T> {
        let mut child = Section {
            name,
            table,
            known: BTreeSet::new(),
            problems: self.problems,
        };
        let result = read(&mut child);
        child.finish();
        result
    }

    /// Everything left over is unknown.
    pub fn finish(self) {
        for setting in self.table.keys() {
            let path = self.path(setting);
            let nearest = self
                .known
                .iter()
                .map(|known| (distance(known, setting), known))
                .min();
            let text = match nearest {
                Some((0..=2, near)) => format!("unknown setting; did you mean {near}?"),
                _ => "unknown setting; remove it".to_owned(),
            };
            self.problems.push(Problem {
                setting: path,
                text,
            });
        }
    }
}

/// How many letters to add, drop or change to get from one name to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// What a value is, in an operator's words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a number",
        Value::Float(_) => "a decimal number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// A type that can be read from one TOML value; the error says what is wrong and what to write.
pub(super) trait Setting: Sized {
    /// Reads the value, or says what is wrong with it.
    fn read(value: Value) -> Result<Self, String>;
}

impl Setting for String {
    fn read(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) if text.is_empty() => Err("must not be empty".to_owned()),
            Value::String(text) => Ok(text),
            other => Err(format!("must be text in quotes, not {}", kind(&other))),
        }
    }
}

impl Setting for bool {
    fn read(value: Value) -> Result<Self, String> {
        value
            .as_bool()
            .ok_or_else(|| format!("must be true or false, not {}", kind(&value)))
    }
}

impl Setting for Vec<String> {
    fn read(value: Value) -> Result<Self, String> {
        match value {
            Value::Array(entries) => entries.into_iter().map(String::read).collect(),
            other => Err(format!("must be a list of texts, not {}", kind(&other))),
        }
    }
}

impl<T: Setting> Setting for Option<T> {
    fn read(value: Value) -> Result<Self, String> {
        T::read(value).map(Some)
    }
}

/// A number within a range, both ends included.
pub(super) struct Within<const MIN: u64, const MAX: u64>(pub u64);

impl<const MIN: u64, const MAX: u64> Setting for Within<MIN, MAX> {
    fn read(value: Value) -> Result<Self, String> {
        let Value::Integer(number) = value else {
            return Err(format!(
                "must be a number from {MIN} to {MAX}, not {}",
                kind(&value)
            ));
        };
        match u64::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(format!(
                "{number} is out of range: must be from {MIN} to {MAX}"
            )),
        }
    }
}

/// Any type that is written as text.
pub(super) struct Parsed<T>(pub T);

impl<T> Setting for Parsed<T>
where
    T: FromStr,
    T::Err: Display,
{
    fn read(value: Value) -> Result<Self, String> {
        String::read(value)?
            .parse()
            .map(Self)
            .map_err(|error: T::Err| error.to_string())
    }
}
