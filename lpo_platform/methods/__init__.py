from lpo_platform.config.exports import lazily

__getattr__, __dir__ = lazily(__name__, __file__)
