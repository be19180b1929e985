"""The shapes that files have values in (chats, answers, words, lists, text that is a list), read as one."""
