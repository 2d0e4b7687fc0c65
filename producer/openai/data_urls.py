"""Files in requests: `data:` URLs in base64. No address is opened, neither here nor by workers."""

from common.records import Json
from producer.openai.errors import bad_request


def check_data_url(name: str, value: Json) -> str:
    """Return a `data:` URL; its contents are checked where they are decoded.

    Raises:
        RecordError: `bad_request`, it is an address, or no URL.
    """
    if isinstance(value, str) and value.startswith("data:") and ";base64," in value[:200]:
        return value
    if isinstance(value, str) and "://" in value[:20]:
        raise bad_request(
            f"{name} is the URL {value!r:.200}; workers do not open URLs. Send the file itself, as data:TYPE;base64,..."
        )
    raise bad_request(f"{name} must be a data: URL in base64, such as data:image/png;base64,..., found {value!r:.100}")
