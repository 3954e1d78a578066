//! Fields of spans as JSON. Each request has a span with its id, and nearly none logs anything: what stands
//! ready for that is to cost little.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, FormattedFields};

use super::escape::push_quoted;

/// Longest value that is shown, in bytes.
const LONGEST: usize = 1024;

/// Writes fields as the object that the JSON format expects.
pub struct JsonFields;

struct Object(String);

impl Object {
    fn key(&mut self, field: &Field) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        push_quoted(&mut self.0, field.name(), LONGEST);
        self.0.push(':');
    }

    fn finish(mut self) -> String {
        self.0.push_str(if self.0.is_empty() { "{}" } else { "}" });
        self.0
    }
}

impl Visit for Object {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.key(field);
        push_quoted(&mut self.0, value, LONGEST);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.key(field);
        push_quoted(&mut self.0, &format!("{value:?}"), LONGEST);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.key(field);
        // Writing to a String cannot fail.
        let _ = write!(self.0, "{value}");
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.key(field);
        let _ = write!(self.0, "{value}");
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.key(field);
        let _ = write!(self.0, "{value}");
    }
}

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut object = Object(String::new());
        fields.record(&mut object);
        writer.write_str(&object.finish())
    }

    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let mut object = Object(current.fields.strip_suffix('}').unwrap_or_default().to_owned());
        if object.0 == "{" {
            object.0.clear();
        }
        fields.record(&mut object);
        current.fields = object.finish();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Output {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn an_event_names_its_spans_with_their_fields() {
        let output = Output::default();
        let log = tracing_subscriber::fmt().json().flatten_event(true).fmt_fields(JsonFields);
        tracing::subscriber::with_default(log.with_writer(output.clone()).finish(), || {
            let span = tracing::info_span!("request", id = "a\"\u{1b}", later = tracing::field::Empty);
            let _inside = span.enter();
            let _bare = tracing::info_span!("bare").entered();
            let _all = tracing::info_span!("all", a = 1u64, b = -1i64, c = true, d = ?Some("x")).entered();
            span.record("later", "added");
            tracing::info!("told");
        });
        let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["message"], "told");
        assert_eq!(
            event["spans"],
            json!([
                {"name": "request", "id": "a\"\u{1b}", "later": "added"},
                {"name": "bare"},
                {"name": "all", "a": 1, "b": -1, "c": true, "d": "Some(\"x\")"},
            ])
        );
    }
}
