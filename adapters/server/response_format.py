"""What a caller wants a text to be: OpenAI's ``response_format``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class JsonSchema(BaseModel):
    """A schema as OpenAI wraps it. It is kept to whether ``strict`` says so or not; its name is the caller's own."""

    model_config = ConfigDict(extra="ignore")

    wanted: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(BaseModel):
    """What a text has to be: anything, a JSON object, or JSON by a schema."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema comes with the type "json_schema", and with no other')
        return self

    @property
    def wanted(self) -> dict[str, Any] | None:
        """The JSON schema of the text, None of any text."""
        if self.json_schema is not None:
            return self.json_schema.wanted
        return {"type": "object"} if self.type == "json_object" else None
