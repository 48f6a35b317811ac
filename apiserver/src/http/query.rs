//! The query of a request.

use crate::refusal::Refusal;

/// Parameters in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        Self(
            form_urlencoded::parse(text.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// A parameter's text, empty if it is not there.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// `true` and `1`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1" | "True" | "TRUE")
    }

    /// A whole number, `None` if it is not there.
    ///
    /// # Errors
    /// 400 if it is no number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Refusal::BadRequest(format!("invalid value for {name}: {text:?} is no number"))
            }),
        }
    }

    /// Whether the write is only to be tried.
    pub(crate) fn dry_run(&self) -> bool {
        self.text("dryRun") == "All"
    }
}
