"""A page on which two models answer the same prompt side by side, each answer with its scores while it arrives.

`sides` asks the models, `reading` scores what they say, `answering` follows an answer from the request to its end,
`page` shows it, and `server` listens. The models may be served ones or loaded in this process.
"""
