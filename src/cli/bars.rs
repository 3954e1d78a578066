//! Bars on a terminal.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// One bar for all images, above it one for each that is under way.
pub struct Bars {
    all: MultiProgress,
    images: ProgressBar,
    running: HashMap<String, ProgressBar>,
}

impl Bars {
    /// For so many images.
    pub fn new(images: usize) -> Self {
        let all = MultiProgress::new();
        let bar = ProgressBar::new(images as u64).with_style(style("{wide_bar} {pos}/{len} images"));
        Self { images: all.add(bar), all, running: HashMap::new() }
    }

    /// How far an image has come, in bytes.
    pub fn progress(&mut self, image: &str, bytes: u64, bytes_here: u64) {
        let bar = self.running.entry(image.to_owned()).or_insert_with(|| {
            let style =
                style("{msg:40!} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}");
            self.all.insert_before(&self.images, ProgressBar::new(bytes).with_style(style))
        });
        bar.set_message(image.to_owned());
        bar.set_length(bytes);
        bar.set_position(bytes_here);
    }

    /// An image has come to its end.
    pub fn ended(&mut self, image: &str) {
        if let Some(bar) = self.running.remove(image) {
            bar.finish_and_clear();
        }
        self.images.inc(1);
    }

    pub fn finish(&mut self) {
        self.images.finish_and_clear();
    }

    /// Writes where no bar is in the way.
    pub fn above<T>(&self, write: impl FnOnce() -> T) -> T {
        self.all.suspend(write)
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are literals of this file, and a test reads them all.
    ProgressStyle::with_template(template).expect("a template").progress_chars("=> ")
}
